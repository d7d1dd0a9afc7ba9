//! The two TLS listeners: from a socket to a request with its peer.
//!
//! Owns everything that keeps slow, silent and too many clients from using up the server: limits on connections, time
//! for the handshake, the head and the body of a request, and progress. Deliberately knows no route.

mod connection;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use domain::machine::MachineId;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::attempts::network;
use crate::certificate_authority::MachineKey;
use connection::{DeadlineBody, Progress};

/// Time for the TLS handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Time from the first wait for a request to the end of its head; so it ends idle connections too.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Time from the head of a request to the end of its body.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// Time without a single byte in either direction.
const SILENCE_MAX: Duration = Duration::from_secs(75);
/// Time for requests that are under way when the server stops.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// How long to wait after the system refuses a connection, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: u32 = 32 * 1024;
/// HTTP/2: requests at a time on one connection.
const STREAMS_MAX: u32 = 32;
/// HTTP/2: bytes that a client may send ahead of us reading them, per request and per connection.
const WINDOW_BYTES: u32 = 64 * 1024;

/// Who is at the other end of a connection; an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Where it connects from.
    pub(crate) address: SocketAddr,
    /// The machine whose certificate it proved to hold; on the agents' listener only.
    pub(crate) machine: Option<MachineId>,
}

/// A bound socket that speaks TLS.
pub(crate) struct Listener {
    socket: TcpListener,
    acceptor: TlsAcceptor,
    protocol: auto::Builder<TokioExecutor>,
    slots: Arc<Semaphore>,
    per_address: Arc<AddressCounts>,
}

/// How many connections a listener has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// In all.
    pub(crate) total: u32,
    /// From one address.
    pub(crate) per_address: u32,
}

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The TLS library refuses the settings.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
    /// The TLS library refuses the authority that certifies machines.
    #[error("cannot set up the check of machines' certificates")]
    Authority(#[source] rustls::server::VerifierBuilderError),
}

impl Listener {
    /// Binds a socket.
    ///
    /// # Errors
    /// [`TlsError::Bind`].
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: ServerConfig,
        limits: ConnectionLimits,
    ) -> Result<Self, TlsError> {
        let socket = TcpListener::bind(address).await.map_err(|source| TlsError::Bind { address, source })?;
        Ok(Self {
            socket,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            protocol: protocol(),
            slots: Arc::new(Semaphore::new(usize::try_from(limits.total).unwrap_or(usize::MAX))),
            per_address: Arc::new(AddressCounts { max: limits.per_address, counts: Mutex::default() }),
        })
    }

    /// The bound address.
    ///
    /// # Errors
    /// From the system.
    pub(crate) fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves `router` until `stop` turns true, then gives what is under way a bounded time to end. Connections that
    /// were upgraded are not waited for: they belong to whoever upgraded them.
    pub(crate) async fn serve(self, router: Router, mut stop: watch::Receiver<bool>) {
        let graceful = GracefulShutdown::new();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => break,
                accepted = self.accept() => {
                    if let Some(accepted) = accepted {
                        let (acceptor, protocol) = (self.acceptor.clone(), self.protocol.clone());
                        tokio::spawn(accepted.serve(acceptor, protocol, router.clone(), graceful.watcher()));
                    }
                }
            }
        }
        drop(self.socket);
        if tokio::time::timeout(DRAIN_TIME_MAX, graceful.shutdown()).await.is_err() {
            tracing::warn!(seconds = DRAIN_TIME_MAX.as_secs(), "requests under way were cut off");
        }
    }

    /// The next connection, once there is a slot for it; none when it is not to be served.
    async fn accept(&self) -> Option<Accepted> {
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        match self.socket.accept().await {
            Ok((socket, address)) => {
                let share = AddressCounts::admit(&self.per_address, network(address.ip()))?;
                Some(Accepted { socket, address, slot: Slot { _permit: permit, _share: share } })
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }
}

/// A connection before its handshake.
struct Accepted {
    socket: TcpStream,
    address: SocketAddr,
    slot: Slot,
}

impl Accepted {
    async fn serve(
        self,
        acceptor: TlsAcceptor,
        protocol: auto::Builder<TokioExecutor>,
        router: Router,
        watcher: Watcher,
    ) {
        let address = self.address;
        if let Err(error) = self.socket.set_nodelay(true) {
            return tracing::debug!(%address, %error, "the connection is gone");
        }
        // The slot goes with the socket, because the socket outlives this function when it is upgraded.
        let socket = Progress::new(self.socket, SILENCE_MAX, self.slot);
        let tls = match tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(socket)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "no TLS handshake"),
            Err(_) => return tracing::debug!(%address, "the TLS handshake took too long"),
        };
        let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let machine = match certificate.map(MachineKey::from_certificate).transpose() {
            Ok(key) => key.map(|key| key.id()),
            Err(error) => return tracing::warn!(%address, %error, "a certificate of ours for no machine"),
        };
        let peer = Peer { address, machine };
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(|body| Body::new(DeadlineBody::new(body, BODY_TIME_MAX)));
            request.extensions_mut().insert(peer);
            router.clone().oneshot(request)
        });
        let connection = protocol.serve_connection_with_upgrades(TokioIo::new(tls), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%address, %error, "the connection ended early");
        }
    }
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(usize::try_from(HEAD_BYTES_MAX).unwrap_or(usize::MAX));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIME_MAX)
        .keep_alive_timeout(HEAD_TIME_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    builder
}

/// TLS for everybody.
///
/// # Errors
/// [`TlsError::Setup`].
pub(crate) fn public_config(certificate: Arc<ServerCertificate>) -> Result<ServerConfig, TlsError> {
    let mut config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS for machines: only those that prove to hold a key that `authority` certified get through the handshake.
///
/// # Errors
/// [`TlsError::Setup`], [`TlsError::Authority`].
pub(crate) fn agents_config(
    certificate: Arc<ServerCertificate>,
    authority: &CertificateDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(TlsError::Setup)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(TlsError::Authority)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    // WebSockets start on HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Connections last, so there is little to resume: every one proves the key anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The server's certificate, replaced while connections come in.
#[derive(Debug)]
pub(crate) struct ServerCertificate(RwLock<Arc<CertifiedKey>>);

impl ServerCertificate {
    pub(crate) fn new(key: CertifiedKey) -> Self {
        Self(RwLock::new(Arc::new(key)))
    }

    /// Shows `key` to every later connection.
    pub(crate) fn replace(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// A place among a listener's connections, given back when dropped.
struct Slot {
    _permit: OwnedSemaphorePermit,
    _share: Share,
}

/// How many connections each address has. Holds only addresses that have some.
struct AddressCounts {
    max: u32,
    counts: Mutex<HashMap<IpAddr, u32>>,
}

impl AddressCounts {
    fn admit(counts: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let mut held = counts.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        if *count >= counts.max {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Share { counts: Arc::clone(counts), address })
    }
}

/// One connection of one address.
struct Share {
    counts: Arc<AddressCounts>,
    address: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.counts.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
