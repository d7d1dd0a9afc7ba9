//! Replays the committed seeds, and what is near them, through every target: on any compiler, without the fuzzer.

use std::path::Path;

/// Longer seeds are changed at fewer places.
const CHANGES_MAX: usize = 100;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |path: &Path| (path.display().to_string(), std::fs::read(path).unwrap());
    let mut seeds: Vec<_> = files.map(|file| read(&file.unwrap().path())).collect();
    seeds.sort();
    seeds
}

#[test]
fn every_target_holds_on_its_seeds_and_near_them() {
    for (name, target) in fuzz::TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 3, "{name} has {} seeds", seeds.len());
        for (path, seed) in seeds {
            println!("{path}");
            target(&seed);
            let step = seed.len() / CHANGES_MAX + 1;
            for at in (0..seed.len()).step_by(step) {
                target(&seed[..at]);
                for change in [0x01, 0x20, 0x80] {
                    let mut changed = seed.clone();
                    changed[at] ^= change;
                    target(&changed);
                }
            }
        }
        target(&[]);
    }
}

#[test]
fn the_seeds_are_worth_their_name() {
    // Each target has a seed that is accepted, else the replay would only ever see refusals.
    let accepted: [(&str, fn(&[u8]) -> bool); 8] = [
        ("token", fuzz::is_token),
        ("kernel_event", fuzz::is_kernel_event),
        ("unit_file", fuzz::starts_something),
        ("agent_protocol", |data| agent_protocol::decode::<agent_protocol::FromAgent>(data, 1 << 20).is_ok()),
        ("gate_protocol", |mut data| {
            matches!(gate_protocol::read_frame::<gate_protocol::Request>(&mut data), Ok(Some(_)))
        }),
        ("dpkg", |data| !trust::dpkg::read_status(data).unwrap().packages.is_empty()),
        ("rpm", |data| fuzz::list_headers(data) > 0),
        ("baseline", |data| {
            policy::baseline::Baseline::open(data).is_ok_and(|baseline| baseline.verify().is_ok())
        }),
    ];
    for (name, accepts) in accepted {
        assert!(seeds(name).iter().any(|(_, seed)| accepts(seed)), "{name}");
    }
    let key = orders::SigningKey::from_seed(&[7; 32]);
    let machine = domain::machine::MachineId([3; 20]);
    let keys = orders::TrustedKeys::new([key.public_key()]);
    let believed = |seed: &[u8]| orders::VerifiedOrder::verify_kept(seed, &keys, machine).is_ok();
    assert!(seeds("orders").iter().any(|(_, seed)| believed(seed)), "orders");
    let is_code = |seed: &[u8]| {
        std::str::from_utf8(seed).is_ok_and(|text| text.parse::<orders::BreakGlassCode>().is_ok())
    };
    let is_statement = |seed: &[u8]| orders::VerifiedBreakGlass::verify(seed, &keys, machine).is_ok();
    assert!(seeds("break_glass").iter().any(|(_, seed)| is_code(seed)), "a code");
    assert!(seeds("break_glass").iter().any(|(_, seed)| is_statement(seed)), "a statement");
    let listed = |seed: &[u8]| orders::VerifiedManifest::verify_kept(seed, &keys).is_ok();
    assert!(seeds("orders").iter().any(|(_, seed)| listed(seed)), "manifests");
}
