//! Signing in: profiles, secrets, and whom to trust.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use expect_test::{Expect, expect};

use crate::program::{Program, Run};
use crate::stand_in::{Answer, CLIENT_ID, SECRET, StandIn, machine, person_token};

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

fn sign_in(program: &Program, server: &StandIn, more: &[&str]) -> Run {
    let arguments = [&["login", "--server", &server.url, "--ca-pin", &server.ca_pin], more].concat();
    program.run(&arguments)
}

#[test]
fn a_person_signs_in_by_device_code() {
    let (server, program) = (server(), Program::bare());
    server.people.lock().unwrap().refusals = vec!["authorization_pending"];
    let run = sign_in(&program, &server, &[]);
    assert_eq!(run.result(), "");
    let profile = program.profile_file();
    let stderr = run.stderr.replace(&server.url, "URL").replace(profile.to_str().unwrap(), "FILE");
    expect![[r#"
        to sign in, open  https://cordon.example/device
        and enter         BDSD-HQMK
        signed in to URL as ann@example.org; profile "default" is in FILE
    "#]]
    .assert_eq(&stderr);
    assert_eq!(fs::metadata(&profile).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(program.run(&["machine", "list"]).result().contains("lab-042"));
    assert_eq!(server.calls().pop().unwrap().token, Some(person_token(1)));
    let client = "c07d0000-0000-4000-8000-000000000001";
    let poll = format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code&client_id={client}&device_code=device-1"
    );
    let begin = format!("client_id={client}&scope=https%3A%2F%2Fcordon.example%2F.default+offline_access");
    assert_eq!(server.people.lock().unwrap().forms, [begin, poll.clone(), poll]);

    expect![[r#"
        server      URL
        user        ann@example.org
        app         c07d0000-0000-4000-8000-000000000001
        scopes      Machine.Read, Machine.RestrictExecution
        groups      responders
        issuer      https://cordon.example/7e9a/v2.0
        audience    https://cordon.example
        token ends  2026-03-02T09:14:55Z
    "#]]
    .assert_eq(&program.run(&["whoami"]).result().replace(&server.url, "URL"));
    let json: serde_json::Value =
        serde_json::from_str(program.run(&["whoami", "-o", "json"]).result()).unwrap();
    assert_eq!((&json["kind"], &json["name"]), (&"user".into(), &"ann@example.org".into()));
    program.run(&["logout"]).result();
    assert!(!profile.exists());
}

#[test]
fn a_person_who_declines_is_not_signed_in() {
    let (server, program) = (server(), Program::bare());
    for (refusal, code, expected) in [
        ("access_denied", 4, "cordon: the sign-in was declined: no token for you: access_denied: told"),
        ("expired_token", 1, "cordon: nobody signed in while the code counted: run cordon login again"),
    ] {
        server.people.lock().unwrap().refusals = vec![refusal];
        let run = sign_in(&program, &server, &[]);
        assert_eq!((run.code, run.stderr.lines().last()), (code, Some(expected)), "{run:?}");
    }
    assert!(!program.profile_file().exists());
}

#[test]
fn tokens_of_a_person_are_renewed_and_each_refresh_token_is_used_once() {
    let (server, program) = (server(), Program::bare());
    server.people.lock().unwrap().valid = vec![30];
    sign_in(&program, &server, &[]).result();
    for run in 2..4 {
        program.run(&["machine", "list"]).result();
        assert_eq!(server.calls().pop().unwrap().token, Some(person_token(run)));
        let used = server.people.lock().unwrap().forms.pop().unwrap();
        assert!(used.contains(&format!("&refresh_token=refresh-{}&", run - 1)), "{used}");
    }
    // Somebody else used the refresh token.
    let text = fs::read_to_string(program.profile_file()).unwrap();
    fs::write(program.profile_file(), text.replace("refresh-3", "refresh-2")).unwrap();
    let run = program.run(&["machine", "list"]);
    expect!["the sign-in of this profile has ended (invalid_grant: told): run cordon login again"]
        .assert_eq(run.error(4));
}

#[test]
fn runs_at_the_same_time_renew_a_token_once() {
    let (server, program) = (server(), Program::bare());
    server.people.lock().unwrap().valid = vec![30, 3600];
    sign_in(&program, &server, &[]).result();
    let runs: Vec<_> = (0..4).map(|_| program.command(&["machine", "list"]).spawn().unwrap()).collect();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let forms = server.people.lock().unwrap().forms.clone();
    assert_eq!(forms.iter().filter(|form| form.contains("grant_type=refresh_token")).count(), 1);
}

#[test]
fn a_kept_token_that_the_server_no_longer_takes_is_renewed() {
    let server = StandIn::start(|_, call| {
        if call.token == Some(person_token(1)) && !call.line.contains("top") {
            return Answer::error(401, "Unauthorized", "the token was signed with another key");
        }
        Answer::ok(&serde_json::json!({ "value": [machine("lab-042")] }))
    });
    let program = Program::bare();
    sign_in(&program, &server, &[]).result();
    program.run(&["machine", "list"]).result();
    program.run(&["machine", "list"]).result();
    let tokens: Vec<_> = server.calls().into_iter().filter_map(|call| call.token).collect();
    assert_eq!(tokens, [1, 1, 2, 2].map(person_token), "the new one is kept");
}

#[test]
fn a_person_signs_in_by_another_issuer() {
    let (server, other, program) = (server(), server(), Program::bare());
    other.people.lock().unwrap().valid = vec![30];
    let (issuer, ca_file) = (format!("{}/issuer", other.url), program.file("idp.pem", &other.ca_certificate));
    let options = ["--issuer", &issuer, "--issuer-ca-file", ca_file.to_str().unwrap(), "--client-id", "cli"];
    let more = ["--resource", "https://cordon.example"];
    sign_in(&program, &server, &[&options[..], &more].concat()).result();
    program.run(&["machine", "list"]).result();
    assert_eq!(server.calls().pop().unwrap().token, Some(person_token(2)), "renewed by that issuer");
    let forms = other.people.lock().unwrap().forms.clone();
    let asked =
        "scope=https%3A%2F%2Fcordon.example%2F.default+offline_access&resource=https%3A%2F%2Fcordon.example";
    assert_eq!(forms[0], format!("client_id=cli&{asked}"));
    assert_eq!(forms[2], format!("grant_type=refresh_token&client_id=cli&refresh_token=refresh-1&{asked}"));
    assert!(server.people.lock().unwrap().forms.is_empty());

    assert_eq!(sign_in(&program, &server, &["--issuer", &issuer]).code, 2, "which client there?");
    let run = sign_in(&program, &server, &["--issuer", "http://idp.example", "--client-id", "cli"]);
    assert!(run.error(2).contains("must be an https URL"), "{run:?}");
    other.people.lock().unwrap().issuer = Some("https://elsewhere.example".to_owned());
    let run = sign_in(&program, &server, &options);
    assert!(run.error(1).ends_with("is of another issuer, \"https://elsewhere.example\""), "{run:?}");
}
