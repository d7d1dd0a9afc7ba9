//! From frames to the domain. Every text of a machine that people may see is made harmless for their terminals here.

use std::collections::HashSet;

use agent_protocol as protocol;
use control_plane::{ReportedBreakGlass, ReportedState};
use domain::digest::Sha256Digest;
use domain::execution_event::ExecutionEvent;
use domain::impact_preview::{ImpactPreview, RefusedFile};
use domain::machine::{Capabilities, IpAddress, System};
use domain::restriction::Tier;
use domain::time::Timestamp;
use orders::CodeNumber;

use super::End;

/// What a machine says of itself when it connects.
pub(super) fn described(hello: protocol::Hello) -> (System, Capabilities) {
    let tier = hello.tier.as_deref().and_then(Tier::from_name);
    let note = printable(&hello.tier_note);
    let missing = match (tier, hello.tier) {
        (Some(_), _) => None,
        (None, Some(name)) => Some(format!("this server does not know the tier {:?}", printable(&name))),
        (None, None) if note.is_empty() => Some("the agent found no usable mechanism".to_owned()),
        (None, None) => Some(note),
    };
    let system = System {
        computer_dns_name: printable(&hello.computer_dns_name),
        os_platform: printable(&hello.os_platform),
        os_version: printable(&hello.os_version),
        os_build: printable(&hello.os_build),
        os_architecture: printable(&hello.os_architecture),
        agent_version: printable(&hello.agent_version),
        ip_addresses: hello.interfaces.into_iter().map(ip_address).collect(),
    };
    (system, Capabilities { tier, missing })
}

fn ip_address(interface: protocol::Interface) -> IpAddress {
    let is_mac = |mac: &String| mac.len() == 12 && mac.bytes().all(|digit| digit.is_ascii_hexdigit());
    let mac = interface.mac.map(|mac| mac.to_ascii_uppercase()).filter(is_mac);
    IpAddress { address: interface.address, mac, up: interface.up }
}

/// The restriction as the gate reports it.
pub(super) fn reported(report: &protocol::RestrictionReport) -> Result<ReportedState, End> {
    Ok(ReportedState {
        incarnation: count(report.incarnation)?,
        generation: count(report.generation)?,
        restricted: report.restricted,
    })
}

/// What the machine reports of break-glass; none from an agent or a gate that does not know of it.
pub(super) fn break_glass(report: &protocol::RestrictionReport) -> Result<Option<ReportedBreakGlass>, End> {
    let Some(glass) = &report.break_glass else { return Ok(None) };
    let number = CodeNumber {
        store_epoch: count(glass.store_epoch)?,
        incarnation: count(glass.incarnation)?,
        serial: count(glass.first)?,
    };
    Ok(Some(ReportedBreakGlass { held: (number.serial > 0).then_some(number), log: glass.log.clone() }))
}

/// A number that the database can hold.
pub(super) fn count(number: u64) -> Result<u64, End> {
    if i64::try_from(number).is_ok() {
        Ok(number)
    } else {
        Err(End::Goodbye(format!("{number} is no number of an enrollment or a generation")))
    }
}

/// The digests of policies.
pub(super) fn digests(texts: &[String]) -> Result<HashSet<Sha256Digest>, End> {
    let digests: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
    digests.map_err(|error| End::Goodbye(format!("policies: {error}")))
}

/// One refused execution.
pub(super) fn execution_event(event: protocol::ExecutionEvent) -> ExecutionEvent {
    ExecutionEvent {
        at: Timestamp::from_ticks(event.at),
        path: capped(printable(&event.path)),
        sha256: digest_text(event.sha256),
        cause: printable(&event.cause),
        rule: event.rule.as_deref().map(printable),
        pid: event.pid,
        ppid: event.ppid,
        uid: event.uid,
        hook: printable(&event.hook),
        parent_program: capped(printable(&event.parent_program)),
        cgroup: event.cgroup.map(|path| capped(printable(&path))),
        container: event.container.as_deref().map(printable),
        interpreter: event.interpreter.map(|path| capped(printable(&path))),
        script: event.script.map(|path| capped(printable(&path))),
        policy: event.policy.as_deref().map(printable),
        policy_revision: event.policy_revision.map(|revision| revision.min(i64::MAX.unsigned_abs())),
        audited: event.audited,
        count: event.count.min(i64::MAX.unsigned_abs()),
    }
}

/// What a restriction would refuse.
pub(super) fn impact_preview(preview: protocol::ImpactPreview) -> ImpactPreview {
    let file = |file: protocol::RefusedFile| RefusedFile {
        path: capped(printable(&file.path)),
        sha256: digest_text(file.sha256),
        cause: printable(&file.cause),
        rule: file.rule.as_deref().map(printable),
        mapped_only: file.mapped_only,
        last_seen: Timestamp::from_ticks(file.last_seen),
        executions: file.executions.min(i64::MAX.unsigned_abs()),
        processes: file.processes.min(i64::MAX.unsigned_abs()),
        pids: file.pids,
    };
    ImpactPreview {
        taken_at: Timestamp::from_ticks(preview.at),
        processes: preview.processes.min(i64::MAX.unsigned_abs()),
        files: preview.files.min(i64::MAX.unsigned_abs()),
        history_days: preview.history_days,
        is_cut: preview.is_cut,
        refused_files: preview.refused_files.min(i64::MAX.unsigned_abs()),
        refused: preview.refused.into_iter().map(file).collect(),
    }
}

fn digest_text(text: Option<String>) -> Option<String> {
    text.and_then(|text| Some(text.parse::<Sha256Digest>().ok()?.to_string()))
}

/// Longer paths are cut: the kernel knows none, and escapes may make sixfold of what was sent.
const PATH_BYTES_MAX: usize = 4096;

fn capped(mut path: String) -> String {
    path.truncate(path.floor_char_boundary(PATH_BYTES_MAX));
    path
}

/// The text with control characters escaped: agents escape what they send, but not every sender is an honest agent.
pub(super) fn printable(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> protocol::Hello {
        protocol::Hello {
            protocol: 1,
            agent_version: "0.1.0".to_owned(),
            computer_dns_name: "lab".to_owned(),
            os_platform: "Linux".to_owned(),
            os_version: "Debian 12".to_owned(),
            os_build: "6.1".to_owned(),
            os_architecture: "x86_64".to_owned(),
            interfaces: Vec::new(),
            tier: Some("fanotify".to_owned()),
            tier_note: "sees no memfd".to_owned(),
            restriction: protocol::RestrictionReport {
                incarnation: 1,
                store_epoch: 1,
                generation: 0,
                restricted: false,
                policy: None,
                break_glass: None,
            },
            policies: Vec::new(),
        }
    }

    #[test]
    fn a_tier_is_known_or_there_is_a_reason() {
        let capabilities = |tier: Option<&str>, note: &str| {
            let tier = tier.map(str::to_owned);
            described(protocol::Hello { tier, tier_note: note.to_owned(), ..hello() }).1
        };
        let known = capabilities(Some("fanotify"), "sees no memfd");
        assert_eq!(known, Capabilities { tier: Some(Tier::Fanotify), missing: None });
        let table = [
            (None, "no fanotify\x1b[2J", "no fanotify\\u{1b}[2J"),
            (None, "", "the agent found no usable mechanism"),
            (Some("magic"), "", "this server does not know the tier \"magic\""),
        ];
        for (tier, note, missing) in table {
            let missing = Some(missing.to_owned());
            assert_eq!(capabilities(tier, note), Capabilities { tier: None, missing });
        }
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        for (text, plain) in
            [("ü/bin/ls", "ü/bin/ls"), ("a\n\x1b]0;x\x07\u{9b}", "a\\n\\u{1b}]0;x\\u{7}\\u{9b}")]
        {
            assert_eq!(printable(text), plain);
        }
    }

    #[test]
    fn hostile_numbers_and_digests_end_the_connection() {
        assert!(count(u64::MAX).is_err() && count(7).is_ok());
        assert!(digests(&["00".to_owned()]).is_err());
        let report = protocol::RestrictionReport { generation: u64::MAX, ..hello().restriction };
        assert!(reported(&report).is_err());
    }

    #[test]
    fn hardware_addresses_are_twelve_digits_or_none() {
        for (mac, expected) in
            [("0a1B2c3d4e5f", Some("0A1B2C3D4E5F")), ("0a:1b", None), ("zzzzzzzzzzzz", None)]
        {
            let address = ip_address(protocol::Interface {
                address: [192, 0, 2, 1].into(),
                mac: Some(mac.to_owned()),
                up: true,
            });
            assert_eq!(address.mac.as_deref(), expected);
        }
    }
}
