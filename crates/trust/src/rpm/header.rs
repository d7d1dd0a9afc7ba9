//! The header of one rpm package, as rpm keeps it in its database.
//!
//! Bytes, big endian: how many entries (`u32`), how many bytes of data (`u32`); the entries: tag, type, offset into the
//! data, count (`u32` each); the data. Entries that rpm added when it installed the package follow those that came with
//! it, and replace them.

use crate::shipped::{Shipped, clean_path};

/// The most entries: rpm's own limit.
const ENTRIES_MAX: usize = 0xffff;
/// The longest word of a package's name, in bytes.
const WORD_BYTES_MAX: usize = 200;

// Numbers of `rpmtag.h` and `rpmfiles.h`.
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const ARCH: u32 = 1022;
const FILE_STATES: u32 = 1029;
const FILE_MODES: u32 = 1030;
const FILE_DIGESTS: u32 = 1035;
const FILE_FLAGS: u32 = 1037;
const DIR_INDEXES: u32 = 1116;
const BASE_NAMES: u32 = 1117;
const DIR_NAMES: u32 = 1118;
const FILE_DIGEST_ALGORITHM: u32 = 5011;

const TYPE_CHAR: u32 = 1;
const TYPE_INT16: u32 = 3;
const TYPE_INT32: u32 = 4;
const TYPE_STRING: u32 = 6;
const TYPE_STRING_ARRAY: u32 = 8;

/// `PGPHASHALGO_SHA256`.
const SHA256: u32 = 8;
/// Of a path that belongs to the package, and that it does not ship.
const FLAG_GHOST: u32 = 1 << 6;
const STATE_NORMAL: u8 = 0;
const MODE_TYPE: u16 = 0o170_000;
const MODE_REGULAR: u16 = 0o100_000;

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a package header: {0}")]
pub struct Malformed(&'static str);

/// A header, of which nothing was believed yet but its length.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    entries: &'a [[u8; 16]],
    data: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads the lengths.
    ///
    /// # Errors
    /// [`Malformed`] unless the bytes are exactly as many as they say.
    pub fn read(blob: &'a [u8]) -> Result<Self, Malformed> {
        let cut_off = Malformed("it is cut off");
        let (entries, rest) = blob.split_first_chunk().ok_or(cut_off)?;
        let (data, rest) = rest.split_first_chunk().ok_or(cut_off)?;
        let entries = usize::try_from(u32::from_be_bytes(*entries)).ok();
        let entries = entries.filter(|count| *count <= ENTRIES_MAX).ok_or(Malformed("too many entries"))?;
        let (index, rest) = rest.split_at_checked(entries * 16).ok_or(cut_off)?;
        if usize::try_from(u32::from_be_bytes(*data)) != Ok(rest.len()) {
            return Err(Malformed("it is not as long as it says"));
        }
        Ok(Self { entries: index.as_chunks().0, data: rest })
    }

    /// The package as people name it: name, version, release and architecture.
    ///
    /// # Errors
    /// [`Malformed`] when one of these is missing, or is not what can be shown.
    pub fn package(&self) -> Result<String, Malformed> {
        let (name, version, release) = (self.word(NAME)?, self.word(VERSION)?, self.word(RELEASE)?);
        let unnamed = Malformed("it names no package");
        let (name, version, release) =
            (name.ok_or(unnamed)?, version.ok_or(unnamed)?, release.ok_or(unnamed)?);
        // The keys that rpm keeps as packages have none.
        let architecture = self.word(ARCH)?.map(|word| format!(".{word}")).unwrap_or_default();
        Ok(format!("{name}-{version}-{release}{architecture}"))
    }

    /// How many files, directories and links the header says that it lists.
    pub fn count_files(&self) -> u64 {
        self.entry(BASE_NAMES).map_or(0, |entry| u64::from(entry.count))
    }

    /// Calls `each` with every regular file that the package shipped and installed: its absolute path, and its digest.
    /// Answers how many entries were malformed.
    ///
    /// # Errors
    /// [`Malformed`], before the first call, when the lists are not of one length.
    pub fn list_files(&self, each: &mut dyn FnMut(&[u8], Shipped)) -> Result<u64, Malformed> {
        let names = self.strings(BASE_NAMES)?;
        if names.is_empty() {
            return Ok(0);
        }
        let folders = self.strings(DIR_NAMES)?;
        let digests = self.strings(FILE_DIGESTS)?;
        let places = self.numbers(DIR_INDEXES, TYPE_INT32, u32::from_be_bytes)?;
        let modes = self.numbers(FILE_MODES, TYPE_INT16, u16::from_be_bytes)?;
        let flags = self.numbers(FILE_FLAGS, TYPE_INT32, u32::from_be_bytes)?;
        let states = match self.numbers(FILE_STATES, TYPE_CHAR, u8::from_be_bytes)? {
            // A package that was never unpacked by rpm, as in the database of an image.
            absent if absent.is_empty() => vec![STATE_NORMAL; names.len()],
            states => states,
        };
        let algorithm = self.numbers(FILE_DIGEST_ALGORITHM, TYPE_INT32, u32::from_be_bytes)?;
        let is_sha256 = algorithm.as_slice() == [SHA256];
        let lengths = [digests.len(), places.len(), modes.len(), flags.len(), states.len()];
        if lengths != [names.len(); 5] {
            return Err(Malformed("its lists of files are not of one length"));
        }
        let mut malformed = 0;
        let of_files = digests.iter().zip(&places).zip(modes.iter().zip(&flags)).zip(&states);
        for (name, (((digest, place), (mode, flags)), state)) in names.iter().zip(of_files) {
            if mode & MODE_TYPE != MODE_REGULAR || flags & FLAG_GHOST != 0 || *state != STATE_NORMAL {
                continue;
            }
            let folder = usize::try_from(*place).ok().and_then(|place| folders.get(place));
            let shipped = if is_sha256 {
                std::str::from_utf8(digest).ok().and_then(|text| text.parse().ok()).map(Shipped::Sha256)
            } else {
                Some(Shipped::Weak)
            };
            match (folder.and_then(|folder| path_of(folder, name)), shipped) {
                (Some(path), Some(shipped)) => each(&path, shipped),
                _ => malformed += 1,
            }
        }
        Ok(malformed)
    }

    /// The last entry of a tag.
    fn entry(&self, tag: u32) -> Option<Entry> {
        self.entries.iter().rev().map(Entry::read).find(|entry| entry.tag == tag)
    }

    /// The data of a tag from its offset on, and how many items there are. Each has a byte at least.
    fn items(&self, tag: u32, types: &[u32]) -> Result<(&'a [u8], usize), Malformed> {
        let Some(entry) = self.entry(tag) else { return Ok((&[], 0)) };
        let data = usize::try_from(entry.offset).ok().and_then(|offset| self.data.get(offset..));
        let data = data.ok_or(Malformed("an entry lies outside of the data"))?;
        let count = usize::try_from(entry.count).ok().filter(|count| *count <= data.len());
        let count = count.ok_or(Malformed("an entry is longer than the data"))?;
        if types.contains(&entry.kind) {
            Ok((data, count))
        } else {
            Err(Malformed("an entry of another type"))
        }
    }

    fn strings(&self, tag: u32) -> Result<Vec<&'a [u8]>, Malformed> {
        let (mut data, count) = self.items(tag, &[TYPE_STRING_ARRAY])?;
        let mut strings = Vec::with_capacity(count);
        for _ in 0..count {
            let (string, rest) = split_string(data)?;
            strings.push(string);
            data = rest;
        }
        Ok(strings)
    }

    fn numbers<T, const N: usize>(
        &self,
        tag: u32,
        kind: u32,
        number: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Malformed> {
        let (data, count) = self.items(tag, &[kind])?;
        let items = data.as_chunks().0.get(..count).ok_or(Malformed("an entry is longer than the data"))?;
        Ok(items.iter().map(|bytes| number(*bytes)).collect())
    }

    /// A string that is one word, fit for a terminal and for a line of a list.
    fn word(&self, tag: u32) -> Result<Option<&'a str>, Malformed> {
        let (data, count) = self.items(tag, &[TYPE_STRING])?;
        if count == 0 {
            return Ok(None);
        }
        let (word, _) = split_string(data)?;
        let allowed = |byte: &u8| byte.is_ascii_graphic() && !b"/#".contains(byte);
        let possible = (1..=WORD_BYTES_MAX).contains(&word.len()) && word.iter().all(allowed);
        let word = std::str::from_utf8(word).ok().filter(|_| possible);
        word.map(Some).ok_or(Malformed("a name that is no word"))
    }
}

struct Entry {
    tag: u32,
    kind: u32,
    offset: u32,
    count: u32,
}

impl Entry {
    fn read(bytes: &[u8; 16]) -> Self {
        let (words, _) = bytes.as_chunks();
        let mut words = words.iter().map(|word| u32::from_be_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        Self { tag: next(), kind: next(), offset: next(), count: next() }
    }
}

/// A string up to its NUL, and what follows that.
fn split_string(data: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = data.iter().position(|byte| *byte == 0).ok_or(Malformed("a string without an end"))?;
    let (string, rest) = data.split_at(end);
    Ok((string, rest.get(1..).unwrap_or_default()))
}

/// Folders are named with a slash at both ends.
fn path_of(folder: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    if !folder.ends_with(b"/") || name.contains(&b'/') {
        return None;
    }
    clean_path(&[folder.strip_prefix(b"/")?, name].concat())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use domain::digest::Sha256Digest;
    use proptest::prelude::*;

    /// A file as a test's header lists it.
    #[derive(Debug, Clone)]
    pub(crate) struct File {
        pub(crate) path: String,
        pub(crate) digest: String,
        pub(crate) mode: u16,
        pub(crate) flags: u32,
        pub(crate) state: u8,
    }

    impl File {
        pub(crate) fn new(path: &str, digest: &str) -> Self {
            Self { path: path.to_owned(), digest: digest.to_owned(), mode: 0o100_755, flags: 0, state: 0 }
        }
    }

    fn number(count: usize) -> u32 {
        count.try_into().unwrap()
    }

    /// A header put together entry by entry, so that it can be wrong.
    #[derive(Default)]
    pub(crate) struct Builder {
        entries: Vec<u8>,
        count: u32,
        data: Vec<u8>,
    }

    impl Builder {
        fn add(&mut self, tag: u32, kind: u32, count: usize, data: &[u8]) -> &mut Self {
            let align = match kind {
                TYPE_INT32 => 4,
                TYPE_INT16 => 2,
                _ => 1,
            };
            while !self.data.len().is_multiple_of(align) {
                self.data.push(0);
            }
            for word in [tag, kind, number(self.data.len()), number(count)] {
                self.entries.extend(word.to_be_bytes());
            }
            self.data.extend_from_slice(data);
            self.count += 1;
            self
        }

        fn word(&mut self, tag: u32, word: &str) -> &mut Self {
            self.add(tag, TYPE_STRING, 1, format!("{word}\0").as_bytes())
        }

        fn named() -> Self {
            let mut builder = Self::default();
            builder.word(NAME, "bash").word(VERSION, "5.1").word(RELEASE, "6.el9").word(ARCH, "x86_64");
            builder
        }

        pub(crate) fn package(algorithm: Option<u32>, files: &[File]) -> Self {
            let mut builder = Self::named();
            let split =
                |file: &File| file.path.rsplit_once('/').map(|(a, b)| (format!("{a}/"), b.to_owned()));
            let parts: Vec<_> = files.iter().map(|file| split(file).unwrap()).collect();
            let strings =
                |strings: Vec<&str>| strings.iter().flat_map(|s| [s.as_bytes(), b"\0"].concat()).collect();
            let folders: Vec<u8> = strings(parts.iter().map(|(folder, _)| folder.as_str()).collect());
            let names: Vec<u8> = strings(parts.iter().map(|(_, name)| name.as_str()).collect());
            let digests: Vec<u8> = strings(files.iter().map(|file| file.digest.as_str()).collect());
            let n = files.len();
            let places: Vec<u8> = (0..number(n)).flat_map(u32::to_be_bytes).collect();
            let modes: Vec<u8> = files.iter().flat_map(|file| file.mode.to_be_bytes()).collect();
            let flags: Vec<u8> = files.iter().flat_map(|file| file.flags.to_be_bytes()).collect();
            let states: Vec<u8> = files.iter().map(|file| file.state).collect();
            builder
                .add(DIR_NAMES, TYPE_STRING_ARRAY, n, &folders)
                .add(BASE_NAMES, TYPE_STRING_ARRAY, n, &names)
                .add(DIR_INDEXES, TYPE_INT32, n, &places)
                .add(FILE_DIGESTS, TYPE_STRING_ARRAY, n, &digests)
                .add(FILE_MODES, TYPE_INT16, n, &modes)
                .add(FILE_FLAGS, TYPE_INT32, n, &flags)
                .add(FILE_STATES, TYPE_CHAR, n, &states);
            if let Some(algorithm) = algorithm {
                builder.add(FILE_DIGEST_ALGORITHM, TYPE_INT32, 1, &algorithm.to_be_bytes());
            }
            builder
        }

        pub(crate) fn build(&self) -> Vec<u8> {
            let lengths = [self.count.to_be_bytes(), number(self.data.len()).to_be_bytes()].concat();
            [lengths, self.entries.clone(), self.data.clone()].concat()
        }
    }

    fn list(blob: &[u8]) -> Result<(Vec<(String, Shipped)>, u64), Malformed> {
        let mut files = Vec::new();
        let malformed = Header::read(blob)?.list_files(&mut |path, shipped| {
            files.push((String::from_utf8_lossy(path).into_owned(), shipped))
        })?;
        Ok((files, malformed))
    }

    const DIGEST: Shipped = Shipped::Sha256(Sha256Digest([0xab; 32]));

    fn digest() -> String {
        "ab".repeat(32)
    }

    #[test]
    fn only_what_was_shipped_and_installed_is_listed() {
        let file = |path: &str| File::new(path, &digest());
        let folder = File { mode: 0o040_755, digest: String::new(), ..file("/usr/bin") };
        let link = File { mode: 0o120_777, digest: String::new(), ..file("/usr/bin/sh") };
        let ghost = File { flags: FLAG_GHOST, ..file("/var/log/x") };
        let replaced = File { state: 1, ..file("/usr/bin/replaced") };
        let left_out = File { state: 2, ..file("/usr/share/doc/x") };
        let other_colour = File { state: 4, ..file("/usr/bin/32-bit") };
        let config = File { flags: 1, ..file("/etc/bashrc") };
        let blob = Builder::package(
            Some(SHA256),
            &[
                folder,
                file("/usr/bin/bash"),
                link,
                ghost,
                replaced,
                left_out,
                other_colour,
                config,
                file("/top"),
            ],
        )
        .build();
        let header = Header::read(&blob).unwrap();
        assert_eq!((header.package().unwrap().as_str(), header.count_files()), ("bash-5.1-6.el9.x86_64", 9));
        let listed = ["/usr/bin/bash", "/etc/bashrc", "/top"].map(|path| (path.to_owned(), DIGEST));
        assert_eq!(list(&blob).unwrap(), (listed.to_vec(), 0));
        assert_eq!(list(&Builder::named().build()).unwrap(), (vec![], 0), "no files");
    }

    /// MD5 is what no algorithm means; SHA-1 and the rest are not read either.
    #[test]
    fn other_digests_than_sha256_vouch_for_nothing() {
        for algorithm in [None, Some(1), Some(2), Some(10), Some(0)] {
            let blob = Builder::package(algorithm, &[File::new("/usr/bin/bash", &digest())]).build();
            assert_eq!(list(&blob).unwrap(), (vec![("/usr/bin/bash".to_owned(), Shipped::Weak)], 0));
        }
    }

    #[test]
    fn malformed_files_are_counted_and_list_nothing() {
        for (path, digest) in [
            ("relative/x", digest()),
            ("/usr/../x", digest()),
            ("//x", digest()),
            ("/usr//x", digest()),
            ("/usr/", digest()),
            ("/usr/..", digest()),
            (&format!("/{}", "y".repeat(4096)), digest()),
            ("/usr/bin/none", String::new()),
            ("/usr/bin/md5", "ab".repeat(16)),
            ("/usr/bin/long", "ab".repeat(33)),
            ("/usr/bin/letters", "xy".repeat(32)),
        ] {
            let blob = Builder::package(Some(SHA256), &[File::new(path, &digest)]).build();
            assert_eq!(list(&blob).unwrap(), (vec![], 1), "{path} {digest}");
        }
    }

    /// rpm adds entries behind those of the package: a relocated package's files lie where the later ones say.
    #[test]
    fn the_last_entry_of_a_tag_counts() {
        let mut builder = Builder::package(Some(SHA256), &[File::new("/usr/bin/bash", &digest())]);
        builder.add(DIR_NAMES, TYPE_STRING_ARRAY, 1, b"/opt/\0");
        assert_eq!(list(&builder.build()).unwrap(), (vec![("/opt/bash".to_owned(), DIGEST)], 0));
        builder.add(DIR_INDEXES, TYPE_INT32, 1, &7_u32.to_be_bytes());
        assert_eq!(list(&builder.build()).unwrap(), (vec![], 1), "a folder that is not there");
        builder.add(FILE_MODES, TYPE_INT32, 1, &[0; 4]);
        assert_eq!(list(&builder.build()), Err(Malformed("an entry of another type")));
    }

    #[test]
    fn lists_that_disagree_are_refused_whole() {
        for tag in [DIR_INDEXES, FILE_MODES, FILE_DIGESTS, FILE_FLAGS, FILE_STATES] {
            let mut builder = Builder::package(Some(SHA256), &[File::new("/usr/bin/bash", &digest())]);
            let (kind, data) = match tag {
                FILE_DIGESTS => (TYPE_STRING_ARRAY, &b"a\0b\0"[..]),
                FILE_MODES => (TYPE_INT16, &[0; 4][..]),
                FILE_STATES => (TYPE_CHAR, &[0; 2][..]),
                _ => (TYPE_INT32, &[0; 8][..]),
            };
            builder.add(tag, kind, 2, data);
            assert_eq!(
                list(&builder.build()),
                Err(Malformed("its lists of files are not of one length")),
                "{tag}"
            );
        }
    }

    #[test]
    fn names_are_words() {
        for word in ["", "a b", "a\nb", "a/b", "a#2", "\u{e4}", &"n".repeat(201)] {
            let mut builder = Builder::named();
            builder.word(VERSION, word);
            assert!(Header::read(&builder.build()).unwrap().package().is_err(), "{word:?}");
        }
        let mut unnamed = Builder::default();
        unnamed.word(NAME, "gpg-pubkey").word(VERSION, "1");
        assert!(Header::read(&unnamed.build()).unwrap().package().is_err());
        unnamed.word(RELEASE, "2");
        assert_eq!(Header::read(&unnamed.build()).unwrap().package().unwrap(), "gpg-pubkey-1-2");
    }

    #[test]
    fn what_is_enormous_or_cut_off_is_refused() {
        let good = Builder::package(Some(SHA256), &[File::new("/usr/bin/bash", &digest())]).build();
        for length in 0..good.len() {
            assert!(Header::read(&good[..length]).is_err(), "{length}");
        }
        assert!(Header::read(&[good.as_slice(), b"x"].concat()).is_err());
        for lengths in [[u32::MAX, 0], [0x1_0000, 0], [0, u32::MAX], [0xffff, 8]] {
            assert!(Header::read(&lengths.map(u32::to_be_bytes).concat()).is_err(), "{lengths:?}");
        }
        for (offset, count) in [(u32::MAX, 1), (0, u32::MAX), (1 << 30, 1 << 30)] {
            let entry = [BASE_NAMES, TYPE_STRING_ARRAY, offset, count].map(u32::to_be_bytes).concat();
            let blob = [[1, 4].map(u32::to_be_bytes).concat(), entry, vec![0; 4]].concat();
            assert!(list(&blob).is_err(), "{offset} {count}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            names in prop::collection::vec("[a-zA-Z0-9_. -]{0,8}[a-zA-Z0-9]", 0..20), digests: [u8; 20]
        ) {
            let of = |(i, (name, byte)): (usize, (&String, &u8))| {
                (format!("/d{}/{name}", i % 3), Shipped::Sha256(Sha256Digest([*byte; 32])))
            };
            let expected: Vec<_> = names.iter().zip(&digests).enumerate().map(of).collect();
            let file = |(path, shipped): &(String, Shipped)| {
                let Shipped::Sha256(digest) = shipped else { unreachable!() };
                File::new(path, &digest.to_string())
            };
            let files: Vec<_> = expected.iter().map(file).collect();
            let blob = Builder::package(Some(SHA256), &files).build();
            prop_assert_eq!(list(&blob).unwrap(), (expected, 0));
        }

        #[test]
        fn damage_is_never_a_panic_and_paths_stay_clean(at in 0..600_usize, value: u8) {
            let files = ["/usr/bin/bash", "/usr/lib/a", "/etc/b"].map(|path| File::new(path, &digest()));
            let mut blob = Builder::package(Some(SHA256), &files).build();
            if let Some(byte) = blob.get_mut(at) {
                *byte = value;
            }
            if let Ok(header) = Header::read(&blob) {
                let _ = header.package();
                let _ = header.list_files(&mut |path, _| {
                    assert!(path.starts_with(b"/") && !path.contains(&0));
                });
            }
        }
    }
}
