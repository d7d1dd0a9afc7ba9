//! `enroll`: binds this machine to a server, and its gate to the server's order keys.

use std::io::Read as _;
use std::path::Path;

use agent_protocol::{ENROLL_PATH, EnrollReply, EnrollRequest};
use anyhow::{Context as _, Result, bail, ensure};
use domain::digest::Sha256Digest;
use gate_protocol::Request;

use super::print;
use crate::arguments::Enroll;
use crate::config::Config;
use crate::credential::{Credential, Enrollment, MachineKey, pin_of};
use crate::gate::Gate;
use crate::state_dir::StateDir;
use crate::{https, system, tls};

/// The longest token, in bytes.
const TOKEN_BYTES_MAX: u64 = 256;

/// Enrolls this machine.
///
/// # Errors
/// What stood in the way, and what to do about it.
pub(super) fn enroll(config: &Config, with: &Enroll) -> Result<()> {
    // Everything that can be wrong here is looked at before the token is spent.
    ensure!(
        rustix::process::geteuid().is_root(),
        "run this as root: the gate takes an enrollment from nobody else"
    );
    let server = https::base_url(with.server.trim_end_matches('/')).context("--server")?;
    let pin: Sha256Digest = with.ca_pin.parse().context("--ca-pin")?;
    let token = token(with)?;
    let mut gate = Gate::connect(&config.gate_socket)
        .context("start it first: systemctl start cordon-gate, or cordon-gate run")?;
    let status = gate.status()?;
    // A gate that lost its enrollment, and failed closed for it, can be bound anew.
    ensure!(
        !status.restricted || status.machine.is_none(),
        "this machine is restricted: have the restriction lifted before it enrolls again"
    );
    let state = StateDir::new(&config.state_dir);
    state.make()?;
    // The gate knows by its connection, which is there, that root asks.
    let _as_owner = state.as_owner()?;
    let key = MachineKey::load_or_make(&state)?;
    let request = EnrollRequest {
        token,
        certificate_request: key.certificate_request()?,
        gate_public_key: status.public_key,
        computer_dns_name: system::computer_name(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = https::client(tls::pinned(pin)?)?;
    let reply: EnrollReply = runtime
        .block_on(https::post(&client, &server, ENROLL_PATH, &request))
        .context("enrollment failed")?;
    let found = pin_of(&reply.certificate_authority).context("the certificate authority in the answer")?;
    ensure!(found == pin, "the answer holds another certificate authority than the one of --ca-pin");
    let enrollment = Enrollment {
        machine: reply.machine,
        incarnation: reply.incarnation,
        server: with.server.clone(),
        agent_url: reply.agent_url,
        order_keys: reply.order_keys,
    };
    https::base_url(&enrollment.agent_url).context("the agents' URL in the answer")?;
    let parts = (&reply.certificate, &reply.certificate_authority);
    let credential =
        Credential::assemble(enrollment, key, parts.0, parts.1).context("the answer cannot be used")?;
    let enrollment = credential.enrollment;
    let bound = gate.do_it(&Request::Enroll {
        machine: enrollment.machine.clone(),
        incarnation: enrollment.incarnation,
        order_keys: enrollment.order_keys.clone(),
    });
    bound.context(
        "the server has enrolled this machine, but its gate is not bound; enroll again with a fresh token",
    )?;
    Credential::save(&state, &enrollment, parts.0, parts.1)?;
    print(&format!(
        "Enrolled as machine {} (incarnation {}) with {}.\n\
         Start the agent, or restart it if it runs: systemctl restart cordon-agent\n",
        enrollment.machine, enrollment.incarnation, with.server
    ))
}

/// The token, from the command line, a file or standard input.
fn token(with: &Enroll) -> Result<String> {
    let text = match (&with.token, &with.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => {
            let mut text = String::new();
            let read = if path == Path::new("-") {
                std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text)
            } else {
                std::fs::File::open(path)
                    .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
            };
            read.with_context(|| format!("cannot read the token from {}", path.display()))?;
            text
        }
        (None, None) => bail!("give the token by --token or --token-file"),
    };
    let token = text.trim();
    ensure!(!token.is_empty(), "the token is empty");
    Ok(token.to_owned())
}
