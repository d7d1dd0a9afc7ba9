//! Overlays: the file that the kernel asks about is the overlay's, and so is the verdict.

use std::fs;
use std::path::{Path, PathBuf};

use enforcement::Enforcer as _;
use nix::mount::{MsFlags, mount};

use crate::support::*;

/// An overlay, and the folders that it is made of.
struct Overlay {
    merged: PathBuf,
    lower: PathBuf,
    upper: PathBuf,
}

impl Overlay {
    fn mount(lab: &Lab) -> Self {
        let folder = |name: &str| {
            let folder = lab.memory.join(name);
            fs::create_dir(&folder).unwrap();
            open_to_all(&folder);
            folder
        };
        let overlay = Self { merged: folder("merged"), lower: folder("lower"), upper: folder("upper") };
        let (lower, upper) = (overlay.lower.display(), overlay.upper.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={}", folder("work").display());
        mount(Some("overlay"), &overlay.merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        overlay
    }
}

fn asked(lab: &Lab, path: &Path) -> (Outcome, u64) {
    let before = lab.enforcer.status().asked;
    (lab.run(path), lab.enforcer.status().asked - before)
}

kernel_test! {
    fn row_47_programs_in_an_overlay() {
        let mut lab = Lab::new();
        let overlay = Overlay::mount(&lab);
        let (listed, bytes) = (overlay.merged.join("listed"), payload());
        install(&overlay.lower.join("listed"), &bytes);
        lab.judge.list(&bytes);
        let (unlisted, unlisted_bytes) = (overlay.merged.join("unlisted"), payload());
        install(&overlay.lower.join("unlisted"), &unlisted_bytes);
        assert_eq!(lab.run(&unlisted), Outcome::Ran);
        lab.restrict();
        for who in BOTH {
            assert_eq!(lab.act(who, &[&"run", &unlisted]), Outcome::Refused);
        }
        lab.expect_unlisted(&unlisted, &unlisted_bytes);
        // Asked about once, by the name in the overlay, and then kept.
        assert_eq!([asked(&lab, &listed), asked(&lab, &listed)], [(Outcome::Ran, 1), (Outcome::Ran, 0)]);
        // Opened for writing, it is copied to the upper layer, and the kernel asks again.
        fs::write(&listed, evil_twin(&bytes)).unwrap();
        assert_eq!(lab.run(&listed), Outcome::Refused);
        fs::write(&listed, &bytes).unwrap();
        assert_eq!([asked(&lab, &listed), asked(&lab, &listed)], [(Outcome::Ran, 1), (Outcome::Ran, 0)]);
        // The layers are filesystems like others.
        assert_eq!(lab.run(&overlay.lower.join("unlisted")), Outcome::Refused);
    }
}

kernel_test! {
    fn row_47_a_layer_that_is_written_to_directly() {
        let mut lab = Lab::new();
        let overlay = Overlay::mount(&lab);
        let (merged, layer, bytes) = (overlay.merged.join("listed"), overlay.upper.join("listed"), payload());
        install(&layer, &bytes);
        lab.judge.list(&bytes);
        lab.restrict();
        assert_eq!(lab.run(&merged), Outcome::Ran);
        // The lease and the kernel's memory are the overlay's: nobody tells of this.
        fs::write(&layer, evil_twin(&bytes)).unwrap();
        assert_eq!(lab.run(&merged), Outcome::Other(EVIL), "a gap of tier T3");
        assert_eq!(lab.run(&layer), Outcome::Refused);
    }
}
