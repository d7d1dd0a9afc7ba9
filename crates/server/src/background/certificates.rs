//! Keeps the server's certificate and the issuer's keys fresh.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::Ticks;
use crate::certificate_authority::CERTIFICATE_VALIDITY;
use crate::state::{AppState, now};
use crate::tls::ServerCertificate;

/// So soon a running server follows `cordon-server rotate-keys`.
const EVERY: Duration = Duration::from_secs(60);

pub(super) async fn run(state: AppState, certificate: Arc<ServerCertificate>, stop: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(EVERY, stop);
    // The certificate was made when the server started.
    let mut made_at = now();
    while ticks.next().await {
        let issuer = Arc::clone(&state.issuer);
        // Makes an RSA key once a month, which takes a while.
        match spawn_blocking(move || issuer.refresh(now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the issuer keeps its keys");
            }
            Err(error) => tracing::error!(%error, "the issuer keeps its keys"),
        }
        if now().since(made_at) >= CERTIFICATE_VALIDITY / 2 {
            match state.enrollment.authority().issue_server(&state.config.host_names(), now()) {
                Ok(key) => {
                    certificate.replace(key);
                    made_at = now();
                    tracing::info!("the server has a fresh certificate");
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the server keeps its certificate"
                    );
                }
            }
        }
    }
}
