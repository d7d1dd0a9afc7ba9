//! Signing in: profiles, secrets, and whom to trust.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use expect_test::{Expect, expect};

use crate::program::{Program, Run};
use crate::stand_in::{Answer, CLIENT_ID, SECRET, StandIn, machine};

fn server() -> StandIn {
    StandIn::start(|_, _| Answer::ok(&serde_json::json!({ "value": [machine("lab-042")] })))
}

fn login(program: &Program, server: &StandIn, more: &[&str]) -> Run {
    let arguments = [&["login", "--server", &server.url, "--client-id", CLIENT_ID], more].concat();
    program.run_with_input(&arguments, &format!("{SECRET}\n"))
}

#[test]
fn login_keeps_a_profile_that_only_its_owner_can_read() {
    let (server, program) = (server(), Program::bare());
    let ca_file = program.file("ca.pem", &server.ca_certificate);
    let run = login(&program, &server, &["--ca-file", ca_file.to_str().unwrap()]);
    assert_eq!(run.result(), "");
    assert!(
        run.stderr.starts_with(&format!("signed in to {} as app {CLIENT_ID}", server.url)),
        "{}",
        run.stderr
    );
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let profile = program.profile_file();
    assert_eq!((mode(&profile), mode(profile.parent().unwrap())), (0o600, 0o700));

    fs::remove_file(ca_file).unwrap();
    assert!(
        program.run(&["machine", "list"]).result().contains("lab-042"),
        "the profile holds all that is needed"
    );

    fs::set_permissions(&profile, fs::Permissions::from_mode(0o644)).unwrap();
    let run = program.run(&["machine", "list"]);
    assert!(run.error(1).contains("chmod 600"), "{run:?}");
}

#[test]
fn profiles_live_side_by_side_until_logout() {
    let (lab, prod, program) = (server(), server(), Program::bare());
    login(&program, &lab, &["--ca-pin", &lab.ca_pin, "--profile", "lab"]).result();
    login(&program, &prod, &["--ca-pin", &prod.ca_pin]).result();
    program.run(&["machine", "list", "--profile", "lab"]).result();
    assert_eq!((lab.calls().len(), prod.calls().len()), (1, 0));
    program.run(&["machine", "list"]).result();
    assert_eq!((lab.calls().len(), prod.calls().len()), (1, 1));
    program.run(&["logout"]).result();
    assert!(program.run(&["machine", "list"]).error(2).contains("run cordon login"));
    program.run(&["machine", "list", "--profile", "lab"]).result();
    program.run(&["logout", "--profile", "lab"]).result();
    assert!(!program.profile_file().exists());
    assert!(program.run(&["logout"]).error(2).contains("there is no profile"));
}

#[test]
fn a_secret_comes_from_an_option_a_file_or_standard_input() {
    let (server, program) = (server(), Program::bare());
    let arguments = ["login", "--server", &server.url, "--client-id", CLIENT_ID, "--ca-pin", &server.ca_pin];
    let with = |more: &[&'static str]| [&arguments[..], more].concat();
    program.run(&with(&["--client-secret", SECRET])).result();
    program.file("secret", &format!("{SECRET}\n"));
    program.run(&with(&["--client-secret-file", "secret"])).result();
    program.run_with_input(&with(&["--client-secret-file", "-"]), SECRET).result();
    program.run_with_input(&arguments, SECRET).result();
    assert!(program.run(&arguments).error(2).contains("no client secret"));
}

#[test]
fn a_wrong_secret_is_refused_and_nothing_is_kept() {
    let (server, program) = (server(), Program::bare());
    let arguments = ["login", "--server", &server.url, "--client-id", CLIENT_ID, "--ca-pin", &server.ca_pin];
    let run = program.run_with_input(&arguments, "wrong");
    expect![[r#"no token for this app: invalid_client: Invalid client secret provided.\r\nTrace ID: 1 (correlation id 00000000-0000-0000-0000-0000000000c0)"#]].assert_eq(run.error(4));
    assert!(!program.profile_file().exists());
}

#[test]
fn a_server_that_names_no_token_issuer_is_told() {
    let (server, program) = (StandIn::without_issuer(), Program::bare());
    let run = login(&program, &server, &["--ca-pin", &server.ca_pin]);
    let expected = expect![
        "URL/api/machines answered 200 OK, and not as the Cordon API does (it does not say where to get a token): is this the URL of a Cordon server?"
    ];
    expected.assert_eq(&run.error(1).replace(&server.url, "URL"));
}

#[test]
fn a_secret_never_goes_to_a_server_that_it_is_not_for() {
    let (lab, other, program) = (server(), server(), Program::bare());
    login(&program, &lab, &["--ca-pin", &lab.ca_pin]).result();
    let list = |more: &[&str]| program.run(&[&["machine", "list"], more].concat());
    assert!(list(&["--server", &other.url]).error(2).contains("--client-id"));
    assert!(
        list(&["--server", &other.url, "--profile", "default"])
            .error(2)
            .contains("both a server and a profile")
    );
    for option in ["--client-id", "--client-secret", "--ca-file"] {
        assert!(list(&[option, "x"]).error(2).contains("without a server"));
    }
    assert_eq!(other.calls().len(), 0);
}

fn check(program: &Program, server: &StandIn, more: &[&str], expected: &Expect) {
    let run = login(program, server, more);
    expected.assert_eq(&run.error(1).replace(&server.url, "URL"));
    assert!(!program.profile_file().exists());
}

#[test]
fn a_server_that_nobody_vouches_for_is_not_trusted() {
    let (server, other, program) = (server(), server(), Program::bare());
    let other_ca = program.file("other.pem", &other.ca_certificate);
    check(
        &program,
        &server,
        &["--ca-file", other_ca.to_str().unwrap()],
        &expect![
            "URL is not to be trusted: its certificate was not issued by a certificate authority that is trusted here; give the server's own by --ca-file or --ca-pin (cordon-server init prints both)"
        ],
    );
    check(
        &program,
        &server,
        &[],
        &expect![
            "URL is not to be trusted: its certificate was not issued by a certificate authority that is trusted here; give the server's own by --ca-file or --ca-pin (cordon-server init prints both)"
        ],
    );
    check(
        &program,
        &server,
        &["--ca-pin", &other.ca_pin],
        &expect![
            "URL is not to be trusted: no certificate authority that it presents has the pinned SHA-256; compare the pin with what cordon-server init printed; if it is right, someone may sit in between"
        ],
    );
    let empty = program.file("empty.pem", "");
    check(
        &program,
        &server,
        &["--ca-file", empty.to_str().unwrap()],
        &expect!["the CA file holds no certificate in PEM form"],
    );
}

#[test]
fn a_pinned_authority_vouches_only_for_what_it_issued() {
    let (server, program) = (server(), Program::bare());
    let attacker = StandIn::posing_as(&server);
    let expected = expect![
        "URL is not to be trusted: its certificate was not issued by a certificate authority that is trusted here; give the server's own by --ca-file or --ca-pin (cordon-server init prints both)"
    ];
    check(&program, &attacker, &["--ca-pin", &server.ca_pin], &expected);
}

#[test]
fn a_certificate_counts_for_its_name_only() {
    let (mut server, program) = (server(), Program::bare());
    server.url = server.url.replace("localhost", "127.0.0.1");
    let ca_file = program.file("ca.pem", &server.ca_certificate);
    check(
        &program,
        &server,
        &["--ca-file", ca_file.to_str().unwrap()],
        &expect![[
            r#"URL is not to be trusted: invalid peer certificate: certificate not valid for name "127.0.0.1"; certificate is only valid for DnsName("localhost"); use a name in the URL for which the server has a certificate"#
        ]],
    );
    check(
        &program,
        &server,
        &["--ca-pin", &server.ca_pin],
        &expect![[
            r#"URL is not to be trusted: invalid peer certificate: certificate not valid for name "127.0.0.1"; certificate is only valid for DnsName("localhost"); use a name in the URL for which the server has a certificate"#
        ]],
    );
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let (mut server, program) = (server(), Program::bare());
    // The port is ours and nobody listens.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    server.url = format!("https://127.0.0.1:{}", socket.local_addr().unwrap().port());
    check(
        &program,
        &server,
        &["--ca-pin", &server.ca_pin],
        &expect![
            "cannot reach URL: Connection refused (os error 111); check that the server runs, its URL, and the network between"
        ],
    );
    server.url = "https://does-not-exist.invalid".to_owned();
    let run = login(&program, &server, &[]);
    assert!(run.error(1).starts_with("cannot reach https://does-not-exist.invalid: "), "{run:?}");
}
