//! The package baseline: which content installed packages shipped, and where.
//!
//! The agent writes it, the gate keeps it and looks things up in it without loading it. To the gate it is hostile
//! until [`Baseline::verify`] has read it once, and every lookup is bounded even so. Whose bytes it accepts, and
//! when, is the gate's business.
//!
//! Bytes, little endian: magic (8), count (`u64`), length of the path table (`u64`); then `count` records of a SHA-256
//! (32) and an offset into the path table (`u64`), sorted by digest, then path, no two alike; then the path table: a
//! length (`u16`) and that many bytes for each path, in the order of the records and without gaps. So there is exactly
//! one file for one set of entries, and it can be checked in one pass.

use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;

use domain::allow_policy::PATH_BYTES_MAX;
use domain::digest::Sha256Digest;

const MAGIC: &[u8; 8] = b"CORDONB1";
const HEADER_BYTES: u64 = 24;
const RECORD_BYTES: u64 = 40;
/// The most files that a baseline lists.
pub const FILES_MAX: u64 = 2_000_000;
/// The longest baseline, in bytes.
pub const BYTES_MAX: u64 = 1 << 30;
/// The most places that are looked at for one content: more copies than any package set ships of one file.
pub const PLACES_MAX: usize = 64;

/// Builds the bytes of a baseline.
#[derive(Debug, Default)]
pub struct Builder {
    /// Digest and offset into `paths`.
    records: Vec<(Sha256Digest, u64)>,
    paths: Vec<u8>,
}

impl Builder {
    /// Adds a file, in any order. Answers whether it was taken: a path that is not absolute, holds NUL or is longer
    /// than the kernel's limit is left out, because nothing can be executed by it.
    pub fn add(&mut self, digest: Sha256Digest, path: &[u8]) -> bool {
        let Some(length) = path_length(path) else { return false };
        self.records.push((digest, self.paths.len() as u64));
        self.paths.extend_from_slice(&length.to_le_bytes());
        self.paths.extend_from_slice(path);
        true
    }

    /// Writes the baseline.
    ///
    /// # Errors
    /// `InvalidInput` beyond [`FILES_MAX`] or [`BYTES_MAX`]; from the writer.
    pub fn finish(mut self, out: &mut impl io::Write) -> io::Result<()> {
        let paths = self.paths;
        let path_at = |offset: u64| path_in(&paths, offset).unwrap_or_default();
        self.records.sort_by(|a, b| (a.0, path_at(a.1)).cmp(&(b.0, path_at(b.1))));
        self.records.dedup_by(|a, b| a.0 == b.0 && path_at(a.1) == path_at(b.1));
        let count = self.records.len() as u64;
        let paths_bytes: u64 = self.records.iter().map(|(_, offset)| 2 + path_at(*offset).len() as u64).sum();
        if count > FILES_MAX || HEADER_BYTES + count * RECORD_BYTES + paths_bytes > BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more files than a baseline can list"));
        }
        out.write_all(MAGIC)?;
        out.write_all(&count.to_le_bytes())?;
        out.write_all(&paths_bytes.to_le_bytes())?;
        let mut written = 0_u64;
        for (digest, offset) in &self.records {
            out.write_all(digest.as_bytes())?;
            out.write_all(&written.to_le_bytes())?;
            written += 2 + path_at(*offset).len() as u64;
        }
        for (_, offset) in &self.records {
            let path = path_at(*offset);
            out.write_all(&path_length(path).unwrap_or_default().to_le_bytes())?;
            out.write_all(path)?;
        }
        Ok(())
    }
}

/// The length of a path that something can be executed by.
fn path_length(path: &[u8]) -> Option<u16> {
    let possible = path.starts_with(b"/") && path.len() <= PATH_BYTES_MAX && !path.contains(&0);
    u16::try_from(path.len()).ok().filter(|_| possible)
}

fn path_in(paths: &[u8], offset: u64) -> Option<&[u8]> {
    let rest = paths.get(usize::try_from(offset).ok()?..)?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_le_bytes(*length)))
}

/// Where a baseline is read from, at any offset.
pub trait ReadAt {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end; from the source.
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// How many bytes there are.
    ///
    /// # Errors
    /// From the source.
    fn length(&self) -> io::Result<u64>;
}

impl ReadAt for std::fs::File {
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for &[u8] {
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// A baseline that things are looked up in. Holds a few words, whatever the baseline's length.
#[derive(Debug)]
pub struct Baseline<S> {
    source: S,
    count: u64,
    paths_start: u64,
    paths_bytes: u64,
}

impl<S: ReadAt> Baseline<S> {
    /// Reads the header.
    ///
    /// # Errors
    /// `InvalidData` when it is not a baseline, claims more than is possible, or is not as long as it claims; from the
    /// source.
    pub fn open(source: S) -> io::Result<Self> {
        let mut magic = [0; 8];
        source.fill_at(&mut magic, 0)?;
        let (count, paths_bytes) = (read_u64(&source, 8)?, read_u64(&source, 16)?);
        if &magic != MAGIC || count > FILES_MAX || paths_bytes > BYTES_MAX {
            return Err(invalid("not a package baseline of this version"));
        }
        let length = source.length()?;
        let baseline = Self { source, count, paths_start: HEADER_BYTES + count * RECORD_BYTES, paths_bytes };
        if baseline.bytes() != length || length > BYTES_MAX {
            return Err(invalid("the package baseline is cut off or too long"));
        }
        Ok(baseline)
    }

    /// How many files it lists.
    pub fn files(&self) -> u64 {
        self.count
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.paths_start + self.paths_bytes
    }

    /// The paths at which packages shipped this content, sorted, at most [`PLACES_MAX`].
    ///
    /// # Errors
    /// `InvalidData` when a record is damaged; from the source.
    pub fn places(&self, digest: &Sha256Digest) -> io::Result<Vec<Vec<u8>>> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.record(middle)?.0 < *digest {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let mut places = Vec::new();
        while low < self.count && places.len() < PLACES_MAX {
            let (found, offset) = self.record(low)?;
            if found != *digest {
                break;
            }
            places.push(self.path(offset)?);
            low += 1;
        }
        Ok(places)
    }

    /// Shows every path at which a package shipped something, in no order, until told to stop. A damaged entry ends it.
    ///
    /// # Errors
    /// `InvalidData` when an entry is damaged; from the source.
    pub fn for_each_path(&self, show: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<()> {
        let mut paths = self.region(self.paths_start, self.bytes());
        let (mut length, mut path) = ([0; 2], Vec::new());
        for _ in 0..self.count {
            paths.read_exact(&mut length)?;
            path.resize(usize::from(u16::from_le_bytes(length)), 0);
            paths.read_exact(&mut path)?;
            if show(&path).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Reads everything once, in two forward passes side by side: records sorted and unique, path table without gaps,
    /// paths absolute, of possible length and without NUL.
    ///
    /// # Errors
    /// `InvalidData` that names what is wrong; from the source.
    pub fn verify(&self) -> io::Result<()> {
        let mut records = self.region(HEADER_BYTES, self.paths_start);
        let mut paths = self.region(self.paths_start, self.bytes());
        let (mut previous_digest, mut previous_path) = (Sha256Digest([0; 32]), Vec::new());
        let mut path = Vec::new();
        let mut expected_offset = 0;
        for _ in 0..self.count {
            let (mut digest, mut offset, mut length) = (Sha256Digest([0; 32]), [0; 8], [0; 2]);
            records.read_exact(&mut digest.0)?;
            records.read_exact(&mut offset)?;
            if u64::from_le_bytes(offset) != expected_offset {
                return Err(invalid("the path table does not follow the records"));
            }
            paths.read_exact(&mut length)?;
            path.resize(usize::from(u16::from_le_bytes(length)), 0);
            paths.read_exact(&mut path)?;
            if path_length(&path).is_none() {
                return Err(invalid("a path is not absolute, too long, or holds NUL"));
            }
            // The first record is above the empty path of the smallest digest, since its own path is not empty.
            if (previous_digest, &previous_path) >= (digest, &path) {
                return Err(invalid("the records are not sorted"));
            }
            expected_offset += 2 + path.len() as u64;
            previous_digest = digest;
            std::mem::swap(&mut previous_path, &mut path);
        }
        if expected_offset == self.paths_bytes { Ok(()) } else { Err(invalid("bytes that no record names")) }
    }

    fn region(&self, start: u64, end: u64) -> BufReader<Region<'_, S>> {
        BufReader::with_capacity(64 * 1024, Region { source: &self.source, start, end })
    }

    fn record(&self, index: u64) -> io::Result<(Sha256Digest, u64)> {
        let mut digest = [0; 32];
        let offset = HEADER_BYTES + index * RECORD_BYTES;
        self.source.fill_at(&mut digest, offset)?;
        Ok((Sha256Digest(digest), read_u64(&self.source, offset + 32)?))
    }

    fn path(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut length = [0; 2];
        if offset >= self.paths_bytes {
            return Err(invalid("a path lies outside of the table"));
        }
        self.source.fill_at(&mut length, self.paths_start + offset)?;
        let length = usize::from(u16::from_le_bytes(length));
        if length > PATH_BYTES_MAX || offset + 2 + length as u64 > self.paths_bytes {
            return Err(invalid("a path is longer than is possible"));
        }
        let mut path = vec![0; length];
        self.source.fill_at(&mut path, self.paths_start + offset + 2)?;
        Ok(path)
    }
}

/// A part of a source, read forward.
struct Region<'a, S> {
    source: &'a S,
    start: u64,
    end: u64,
}

impl<S: ReadAt> Read for Region<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.start).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        if let Some(part) = buffer.get_mut(..length) {
            self.source.fill_at(part, self.start)?;
        }
        self.start += length as u64;
        Ok(length)
    }
}

fn read_u64(source: &impl ReadAt, offset: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    source.fill_at(&mut bytes, offset)?;
    Ok(u64::from_le_bytes(bytes))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn built(entries: &[(u8, &str)]) -> Vec<u8> {
        let mut builder = Builder::default();
        for (content, path) in entries {
            assert!(builder.add(Sha256Digest([*content; 32]), path.as_bytes()));
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        bytes
    }

    /// A baseline put together by hand, so that it can be wrong.
    fn raw(records: &[(u8, u64)], table: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((records.len() as u64).to_le_bytes());
        bytes.extend((table.len() as u64).to_le_bytes());
        for (content, offset) in records {
            bytes.extend([*content; 32]);
            bytes.extend(offset.to_le_bytes());
        }
        bytes.extend(table);
        bytes
    }

    fn places(bytes: &[u8], content: u8) -> Vec<String> {
        let baseline = Baseline::open(bytes).unwrap();
        let places = baseline.places(&Sha256Digest([content; 32])).unwrap();
        places.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
    }

    fn fault(bytes: &[u8]) -> String {
        let verified = Baseline::open(bytes).and_then(|baseline| baseline.verify());
        verified.map_or_else(|error| error.to_string(), |()| "none".to_owned())
    }

    #[test]
    fn looks_up_every_place_of_a_content() {
        let bytes =
            built(&[(7, "/usr/bin/b"), (2, "/bin/x"), (7, "/usr/bin/a"), (7, "/usr/bin/a"), (9, "/z")]);
        let baseline = Baseline::open(bytes.as_slice()).unwrap();
        baseline.verify().unwrap();
        assert_eq!((baseline.files(), baseline.bytes()), (4, bytes.len() as u64));
        assert_eq!(places(&bytes, 7), ["/usr/bin/a", "/usr/bin/b"]);
        assert_eq!(places(&bytes, 2), ["/bin/x"]);
        assert!(places(&bytes, 3).is_empty() && places(&built(&[]), 3).is_empty());
        assert_eq!(fault(&built(&[])), "none");
    }

    #[test]
    fn bytes_are_as_documented_and_the_order_of_entries_has_no_meaning() {
        let expected = raw(&[(1, 0), (2, 4), (2, 8)], b"\x02\0/b\x02\0/a\x02\0/c");
        assert_eq!(built(&[(2, "/c"), (1, "/b"), (2, "/a"), (1, "/b")]), expected);
    }

    #[test]
    fn the_smallest_digest_is_an_entry_like_any_other() {
        let bytes = built(&[(0, "/")]);
        assert_eq!((fault(&bytes).as_str(), places(&bytes, 0)), ("none", vec!["/".to_owned()]));
    }

    #[test]
    fn every_path_is_shown_until_told_to_stop() {
        let bytes = built(&[(7, "/usr/bin/b"), (2, "/bin/x"), (7, "/usr/bin/a")]);
        let baseline = Baseline::open(bytes.as_slice()).unwrap();
        let shown = |most: usize| {
            let mut shown = Vec::new();
            let mut show = |path: &[u8]| {
                shown.push(String::from_utf8(path.to_vec()).unwrap());
                if shown.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            baseline.for_each_path(&mut show).unwrap();
            shown
        };
        assert_eq!(shown(9), ["/bin/x", "/usr/bin/a", "/usr/bin/b"]);
        assert_eq!(shown(2), ["/bin/x", "/usr/bin/a"]);
        let damaged = raw(&[(1, 0)], b"\xff\xff/a");
        let damaged = Baseline::open(damaged.as_slice()).unwrap();
        assert!(damaged.for_each_path(&mut |_| ControlFlow::Continue(())).is_err());
    }

    #[test]
    fn one_content_in_very_many_places_is_cut_off() {
        let mut builder = Builder::default();
        for i in 0..200 {
            assert!(builder.add(Sha256Digest([1; 32]), format!("/copy/{i:03}").as_bytes()));
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        assert_eq!(places(&bytes, 1).len(), PLACES_MAX);
    }

    #[test]
    fn a_file_is_read_like_bytes() {
        use std::io::Write as _;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&built(&[(1, "/a"), (2, "/b")])).unwrap();
        let baseline = Baseline::open(file).unwrap();
        baseline.verify().unwrap();
        assert_eq!(baseline.places(&Sha256Digest([2; 32])).unwrap(), [b"/b"]);
    }

    #[test]
    fn impossible_paths_are_not_taken() {
        let mut builder = Builder::default();
        for path in [&b"relative"[..], b"", b"/nul\0", &[b'/'; PATH_BYTES_MAX + 1], &[b'/'; 70_000]] {
            assert!(!builder.add(Sha256Digest([1; 32]), path));
        }
        assert!(builder.add(Sha256Digest([1; 32]), &[b'/'; PATH_BYTES_MAX]));
    }

    #[test]
    fn each_kind_of_damage_is_named() {
        let good = b"\x02\0/a\x02\0/b";
        assert_eq!(fault(&raw(&[(1, 0), (2, 4)], good)), "none");
        assert_eq!(fault(&raw(&[(2, 0), (1, 4)], good)), "the records are not sorted");
        assert_eq!(fault(&raw(&[(1, 0), (1, 4)], b"\x02\0/b\x02\0/a")), "the records are not sorted");
        assert_eq!(fault(&raw(&[(1, 0), (1, 4)], b"\x02\0/a\x02\0/a")), "the records are not sorted");
        assert_eq!(fault(&raw(&[(1, 4), (2, 0)], good)), "the path table does not follow the records");
        assert_eq!(fault(&raw(&[(1, 0), (2, u64::MAX)], good)), "the path table does not follow the records");
        assert_eq!(fault(&raw(&[(1, 0)], good)), "bytes that no record names");
        let bad_path = "a path is not absolute, too long, or holds NUL";
        for table in [&b"\x01\0a"[..], b"\x02\0/\0", b"\0\0"] {
            assert_eq!(fault(&raw(&[(1, 0)], table)), bad_path);
        }
        let cut_off = "the package baseline is cut off or too long";
        let mut longer = raw(&[(1, 0), (2, 4)], good);
        longer.push(0);
        assert_eq!(fault(&longer), cut_off);
        assert_eq!(fault(&longer[..longer.len() - 2]), cut_off);
        let mut many = raw(&[], b"");
        many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(fault(&many), "not a package baseline of this version");
    }

    #[test]
    fn a_path_beyond_the_table_is_an_error_for_a_lookup_too() {
        for (offset, table) in
            [(4, &b"\x02\0/a"[..]), (u64::MAX, b"\x02\0/a"), (0, b"\xff\xff/a"), (3, b"\x02\0/a")]
        {
            let bytes = raw(&[(1, offset)], table);
            assert!(Baseline::open(bytes.as_slice()).unwrap().places(&Sha256Digest([1; 32])).is_err());
        }
    }

    proptest! {
        /// What passes verification, however it came about, is exactly what the builder would have written.
        #[test]
        fn damage_is_found_and_never_a_panic(at in 0..200_usize, value: u8, cut in 0..30_usize, content in 0..9_u8) {
            let good = built(&[(1, "/usr/bin/a"), (2, "/usr/bin/b"), (2, "/usr/sbin/b")]);
            let mut bytes = good.clone();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(bytes.len() - cut);
            let Ok(baseline) = Baseline::open(bytes.as_slice()) else { return Ok(()) };
            let _ = baseline.places(&Sha256Digest([content; 32]));
            if baseline.verify().is_ok() {
                let mut builder = Builder::default();
                for index in 0..baseline.files() {
                    let (digest, offset) = baseline.record(index).unwrap();
                    prop_assert!(builder.add(digest, &baseline.path(offset).unwrap()));
                }
                let mut again = Vec::new();
                builder.finish(&mut again).unwrap();
                prop_assert_eq!(again, bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300), count in 0..4_u64) {
            let paths_bytes = (tail.len() as u64).saturating_sub(count * RECORD_BYTES);
            let mut bytes = MAGIC.to_vec();
            bytes.extend(count.to_le_bytes());
            bytes.extend(paths_bytes.to_le_bytes());
            bytes.extend(tail);
            if let Ok(baseline) = Baseline::open(bytes.as_slice()) {
                let _ = baseline.verify();
                let _ = baseline.places(&Sha256Digest([0; 32]));
            }
        }
    }
}
