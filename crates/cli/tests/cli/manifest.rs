//! Signed manifests: what is listed, and that a gate would believe it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use domain::digest::Sha256Digest;
use domain::policy_settings::PolicySettings;
use orders::{TrustedKeys, VerifiedManifest};
use sha2::{Digest as _, Sha256};

use crate::program::Program;

fn keys(public_key: &str) -> TrustedKeys {
    let mut settings = PolicySettings::default();
    settings.set("manifestKeys", public_key).unwrap();
    TrustedKeys::of_manifests(&settings.manifest_keys)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_can_run_is_listed_and_believed() {
    let program = Program::bare();
    let key = program.file("taken", "");
    let refused = program.run(&["manifest", "key", text(&key)]);
    assert!(refused.stderr.contains("cannot make") && refused.stdout.is_empty(), "{}", refused.stderr);
    let folder = key.with_file_name("acme");
    let key = key.with_file_name("private");
    let public_key = program.run(&["manifest", "key", text(&key)]).result().trim().to_owned();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

    fs::create_dir_all(folder.join("lib")).unwrap();
    let put = |name: &str, content: &str, mode| {
        fs::write(folder.join(name), content).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    put("run", "#!/bin/sh", 0o755);
    put("again", "#!/bin/sh", 0o755);
    put("lib/acme.so", "\x7fELF", 0o644);
    put("odd", "data that somebody executes", 0o711);
    put("readme", "text", 0o644);
    symlink("/etc/passwd", folder.join("link")).unwrap();
    let readme = program.file("named", "named by a person");
    let out = key.with_file_name("acme.manifest");
    let sign = |more: &[&str]| {
        let arguments = ["manifest", "sign", "--key", text(&key), "--name", "acme 2.1"];
        program.run(&[&arguments, more].concat())
    };
    let run = sign(&["--expires-in", "2d", "--out", text(&out), text(&folder), text(&readme)]);
    assert!(run.result().starts_with("acme 2.1: 4 contents until 2"), "{}", run.stdout);
    let verified = VerifiedManifest::verify_kept(&fs::read(&out).unwrap(), &keys(&public_key)).unwrap();
    let manifest = verified.manifest();
    let digest = |content: &str| Sha256Digest(Sha256::digest(content).into());
    let contents = ["#!/bin/sh", "\x7fELF", "data that somebody executes", "named by a person"];
    let mut expected = contents.map(digest);
    expected.sort();
    assert_eq!((manifest.name.as_str(), manifest.digests.as_slice()), ("acme 2.1", &expected[..]));
    assert_eq!(
        manifest.expires_at,
        manifest.issued_at.plus(std::time::Duration::from_secs(2 * 24 * 60 * 60))
    );

    // Without --out it is standard output.
    let printed = sign(&[text(&readme)]).result().trim_end().to_owned();
    assert!(VerifiedManifest::verify_kept(printed.as_bytes(), &keys(&public_key)).is_ok());

    for (arguments, reason) in [
        (&[text(&folder.join("missing"))][..], "missing"),
        (&[text(&folder.join("lib/../readme")), "--name", ""], "--name"),
        (&["/dev/null"], "neither a file nor a folder"),
    ] {
        let run = sign(arguments);
        assert!(run.stderr.contains(reason) && run.stdout.is_empty(), "{reason}: {}", run.stderr);
    }
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    assert!(sign(&[text(&folder)]).stderr.contains("nothing there can be executed or loaded"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(sign(&[text(&readme)]).stderr.contains("chmod 600"));
}
