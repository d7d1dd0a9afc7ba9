//! A running server: everything opened in order, both listeners, and a stop that loses nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_plane::{Caller, ControlPlane};
use domain::settings::Settings;
use store::{Store, StoreError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::agents::{self, Enrollment, Hub};
use crate::background;
use crate::certificate_authority::{CertificateAuthority, IssueError};
use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError};
use crate::external_issuer::{ExternalIssuer, IssuerError};
use crate::issuer::{Issuer, KeyFolder};
use crate::router;
use crate::state::{AppState, now};
use crate::tls::{ConnectionLimits, Listener, ServerCertificate, TlsError, agents_config, public_config};
use crate::token::Tokens;

/// The folder of the issuer's keys.
pub(crate) const ISSUER_KEYS: &str = "issuer";
/// How long machines may take to hear that the server stops.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(5);

/// A server that runs until [`Server::shutdown`].
pub struct Server {
    public_address: SocketAddr,
    agent_address: SocketAddr,
    state: AppState,
    store: Store,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    _data: DataDir,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder of keys and database.
    #[error("the data folder cannot be used")]
    DataDir(#[from] DataDirError),
    /// The database.
    #[error("the database cannot be opened")]
    Store(#[from] StoreError),
    /// What the database holds.
    #[error("the control plane cannot start")]
    ControlPlane(#[from] control_plane::Error),
    /// A certificate.
    #[error("the server has no certificate")]
    Certificate(#[from] IssueError),
    /// A listener.
    #[error("the server cannot be reached")]
    Tls(#[from] TlsError),
    /// An issuer whose tokens are to count.
    #[error("the tokens of an issuer cannot be checked")]
    ExternalIssuer(#[from] IssuerError),
    /// A bound socket does not say where.
    #[error("the bound address is unknown")]
    Address(#[source] std::io::Error),
}

/// What `init` and `run` open alike.
pub(crate) struct Parts {
    pub(crate) data: DataDir,
    pub(crate) tenant: Uuid,
    pub(crate) authority: CertificateAuthority,
    pub(crate) store: Store,
    pub(crate) control: ControlPlane,
    pub(crate) hub: Arc<Hub>,
}

impl Parts {
    /// Opens the folder and the database; makes what is missing on the folder's first use. `tenant` is taken then.
    pub(crate) async fn open(config: &Config, tenant: Option<Uuid>) -> Result<Self, StartError> {
        let data = DataDir::open(&config.data_dir)?;
        let tenant = data.tenant(tenant)?;
        let authority = CertificateAuthority::open(&data, tenant, now())?;
        let order_key = data.order_key()?;
        // The database is made last: from then on, no key is made again.
        let store = Store::open(&data.database())?;
        let settings = Settings {
            rate_limit: config.rate_limit(),
            action_deadline: config.action_deadline(),
            ..Settings::default()
        };
        let hub = Arc::new(Hub::default());
        let control = ControlPlane::open(store.clone(), order_key, settings, Arc::clone(&hub) as _).await?;
        Ok(Self { data, tenant, authority, store, control, hub })
    }
}

impl Server {
    /// Starts a server; it answers when this returns.
    ///
    /// # Errors
    /// [`StartError`]. Nothing keeps running then.
    pub async fn start(mut config: Config) -> Result<Self, StartError> {
        let Parts { data, tenant, authority, store, control, hub } = Parts::open(&config, None).await?;
        let certificate =
            Arc::new(ServerCertificate::new(authority.issue_server(&config.host_names(), now())?));
        let public = Listener::bind(
            config.listen,
            public_config(Arc::clone(&certificate))?,
            ConnectionLimits { total: config.connections_max, per_address: config.connections_max / 4 },
        )
        .await?;
        let agents = Listener::bind(
            config.agent_listen,
            agents_config(Arc::clone(&certificate), authority.certificate())?,
            // A whole fleet may come from behind one address.
            ConnectionLimits { total: config.agent_connections_max, per_address: u32::MAX },
        )
        .await?;
        let public_address = public.local_address().map_err(StartError::Address)?;
        let agent_address = agents.local_address().map_err(StartError::Address)?;
        config.put_ports(public_address.port(), agent_address.port());
        let issuer = Issuer::open(KeyFolder::new(data.file(ISSUER_KEYS)), tenant, &config, now())?;
        let issuer = Arc::new(issuer);
        let tokens = Tokens::new(Arc::clone(&issuer), ExternalIssuer::all(&config)?);
        let enrollment = Enrollment::new(authority, &control.order_keys(), &config);
        let state = AppState {
            control,
            issuer,
            tokens: Arc::new(tokens),
            enrollment: Arc::new(enrollment),
            hub,
            config: Arc::new(config),
        };
        if state.control.app_list(&Caller::operator()).await?.is_empty() {
            tracing::warn!(
                "there is no app, so nobody can call the API: stop this and run cordon-server init"
            );
        }
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(public.serve(router::public(state.clone()), stopped.clone()));
        tasks.spawn(agents.serve(agents::router(state.clone()), stopped.clone()));
        for issuer in state.tokens.external() {
            tasks.spawn(Arc::clone(issuer).run(stopped.clone()));
        }
        background::start(&mut tasks, &state, certificate, &stopped);
        tracing::info!(
            %public_address,
            %agent_address,
            public_url = state.config.public_url,
            agent_url = state.config.agent_url,
            "cordon-server runs"
        );
        Ok(Self { public_address, agent_address, state, store, stop, tasks, _data: data })
    }

    /// Where the API is served.
    pub fn public_address(&self) -> SocketAddr {
        self.public_address
    }

    /// Where machines connect.
    pub fn agent_address(&self) -> SocketAddr {
        self.agent_address
    }

    /// The settings in force, with the ports that were bound.
    pub fn config(&self) -> &Config {
        &self.state.config
    }

    /// Stops: no further connection, machines are told, requests under way end. What was accepted is on the disk.
    pub async fn shutdown(mut self) {
        tracing::info!("cordon-server stops");
        self.stop.send_replace(true);
        self.state.hub.stop(GOODBYE_TIME_MAX).await;
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task failed");
            }
        }
        // Everything that was queued to be written some time is written before this.
        if let Err(error) = self.store.write(|_| Ok::<_, StoreError>(())).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the last writes are lost");
        }
    }

    /// Waits until a part of the server has failed. While everything works, this does not return.
    pub async fn failed(&mut self) {
        // No task ends before the server stops.
        if let Some(Err(error)) = self.tasks.join_next().await {
            tracing::error!(%error, "a part of the server failed");
        }
    }
}
