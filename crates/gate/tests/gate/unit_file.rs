//! What units of systemd start, read from their text: as people write it, and as nobody does.

use cordon_gate::unit_file::UnitFile;
use proptest::prelude::*;

fn programs(text: &str) -> Vec<String> {
    let unit = UnitFile::read([text.as_bytes()]);
    unit.programs.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
}

#[test]
fn the_programs_that_a_service_needs_are_found() {
    for (text, expected) in [
        ("[Service]\nExecStart=/usr/sbin/sshd -D $OPTIONS\n", vec!["/usr/sbin/sshd"]),
        (
            "[Service]\nExecStartPre=-/usr/sbin/sshd -t\nExecStart=!!/lib/x y\n",
            vec!["/lib/x", "/usr/sbin/sshd"],
        ),
        ("[Service]\nExecStart=@/usr/bin/dbus-daemon dbus --system\n", vec!["/usr/bin/dbus-daemon"]),
        ("[Service]\r\nExecStart = agetty -o '-p'\r\n", vec!["agetty"]),
        ("[Service]\nExecStart=\"/opt/a b/c\" d\n", vec!["/opt/a b/c"]),
        ("[Service]\nExecStart=/opt/a\\x20b\\040c\\sd\n", vec!["/opt/a b c d"]),
        ("[Service]\nExecStart=\\\n# a comment\n  /bin/one two\n", vec!["/bin/one"]),
        ("[Service]\nExecStart=/bin/one\nExecStart=\nExecStart=/bin/two\n", vec!["/bin/two"]),
        ("[Service]\nExecStart=/opt/100%%\n", vec!["/opt/100%"]),
        // Not what it needs to start, not a program, or not ours to know.
        ("[Service]\nExecStop=/bin/stop\nExecReload=/bin/kill\n", vec![]),
        ("[Install]\nExecStart=/bin/x\n", vec![]),
        ("ExecStart=/bin/x\n", vec![]),
        ("#[Service]\n;ExecStart=/bin/x\n", vec![]),
        ("[Service]\n#ExecStart=/bin/x\n", vec![]),
        ("[Service]\nExecStart=%h/bin/x\n", vec![]),
        ("[Service]\nExecStart=/usr/../home/me/x\n", vec![]),
        ("[Service]\nExecStart=../x\nExecStart=a/b\nExecStart=..\nExecStart=-\nExecStart=\"/a\n", vec![]),
        ("[Service]\nExecStart=/a\\qb\nExecStart=/a\\x2\nExecStart=/a\\x00\n", vec![]),
    ] {
        assert_eq!(programs(text), expected, "{text:?}");
    }
}

#[test]
fn a_drop_in_comes_after_its_unit() {
    let unit: &[u8] = b"[Service]\nExecStart=/bin/one\n";
    let drop_in: &[u8] = b"[Service]\nExecStart=\nExecStart=/bin/two\n";
    assert_eq!(UnitFile::read([unit, drop_in]).programs, [b"/bin/two".to_vec()]);
    // Each file begins outside of any section.
    assert_eq!(UnitFile::read([unit, b"ExecStart=/bin/two\n"]).programs, [b"/bin/one".to_vec()]);
}

#[test]
fn a_socket_names_what_it_starts() {
    let socket = |text: &str| UnitFile::read([text.as_bytes()]);
    let found = socket("[Socket]\nListenStream=22\nAccept=yes\nService=ssh.service\n");
    assert_eq!((found.service.as_deref(), found.accepts), (Some("ssh.service"), true));
    for name in ["../../x.service", "x", ".x.service", ""] {
        assert_eq!(socket(&format!("[Socket]\nService={name}\n")).service, None, "{name}");
    }
}

#[test]
fn there_are_only_so_many_programs() {
    let text = format!("[Service]\n{}", "ExecStart=/bin/x\n".repeat(10_000));
    assert_eq!(programs(&text).len(), 64);
}

proptest! {
    #[test]
    fn what_comes_out_leads_nowhere_else(
        bytes: Vec<u8>, command in "[-@%/.\\\\x0-9a'\" ]{0,40}"
    ) {
        for text in [bytes, format!("[Service]\nExecStart={command}\n").into_bytes()] {
            for path in UnitFile::read([text.as_slice()]).programs {
                let parts: Vec<_> = path.split(|byte| *byte == b'/').collect();
                prop_assert!(path.starts_with(b"/") || parts.len() == 1);
                prop_assert!(!path.is_empty() && path.len() <= 4096 && !path.contains(&0));
                prop_assert!(!parts.contains(&&b".."[..]));
            }
        }
    }
}
