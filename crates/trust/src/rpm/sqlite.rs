//! Reads one table of an `SQLite` database, as <https://sqlite.org/fileformat2.html> describes its bytes.
//!
//! rpm keeps a table `Packages` of numbers and headers. That is all that is read, so there is no need for an SQL engine
//! in a program that should be small. Numbers are big endian. Takes no lock: whoever reads compares the files before
//! and after.

use std::collections::HashMap;
use std::io;

use policy::baseline::ReadAt;

use super::{BLOB_BYTES_MAX, Blobs, PACKAGES_MAX, invalid};

/// `SQLite`'s own limit.
const DEPTH_MAX: usize = 20;
/// Columns that are looked at, of a row.
const COLUMNS: usize = 5;
const WAL_HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

/// A database, with the places of its packages' headers.
#[derive(Debug)]
pub struct Sqlite<S> {
    pages: Pages<S>,
    cells: Vec<Cell>,
}

/// Where a row begins.
#[derive(Debug, Clone, Copy)]
struct Cell {
    page: u32,
    index: u16,
}

impl<S: ReadAt> Sqlite<S> {
    /// Finds the rows of the table `Packages`, in the database as the log of what is not yet written back makes it.
    ///
    /// # Errors
    /// `InvalidData` when it is not such a database, or cannot be one; from the sources.
    pub fn open(database: S, log: Option<S>) -> io::Result<Self> {
        let pages = Pages::open(database, log)?;
        let mut root = None;
        for cell in pages.cells(1)? {
            let row = pages.row(cell)?;
            let [kind, name, _table, page, _sql] = columns(&row)?;
            if (kind, name) == (Value::Text(b"table"), Value::Text(b"Packages")) {
                let Value::Integer(page) = page else { return Err(invalid("a table without a page")) };
                root = Some(u32::try_from(page).map_err(|_impossible| invalid("a page that cannot be"))?);
            }
        }
        let root = root.ok_or_else(|| invalid("it has no table of packages"))?;
        Ok(Self { cells: pages.cells(root)?, pages })
    }
}

impl<S: ReadAt> Blobs for Sqlite<S> {
    fn count(&self) -> usize {
        self.cells.len()
    }

    fn blob(&self, number: usize) -> io::Result<Vec<u8>> {
        let cell = self.cells.get(number).ok_or_else(|| invalid("no such row"))?;
        let row = self.pages.row(*cell)?;
        // The number of the row is not repeated in it.
        let [Value::Null, Value::Blob(blob), ..] = columns(&row)? else {
            return Err(invalid("a row that is not a package"));
        };
        Ok(blob.to_vec())
    }
}

/// The pages, those in the log before those in the database.
#[derive(Debug)]
struct Pages<S> {
    database: S,
    log: Option<S>,
    /// Where in the log the last committed version of a page is.
    logged: HashMap<u32, u64>,
    count: u32,
    bytes: u32,
    /// Bytes of each page that are used.
    usable: usize,
}

impl<S: ReadAt> Pages<S> {
    fn open(database: S, log: Option<S>) -> io::Result<Self> {
        let mut header = [0; 100];
        database.fill_at(&mut header, 0)?;
        let header = Bytes(&header);
        let bytes = match header.u16(16)? {
            1 => 65536,
            bytes if bytes.is_power_of_two() && bytes >= 512 => u32::from(bytes),
            _ => return Err(invalid("pages of impossible length")),
        };
        if !header.0.starts_with(b"SQLite format 3\0") {
            return Err(invalid("not an SQLite database"));
        }
        // 2: what is not yet written back is in a log. 1: it is in the database, and the past in a journal.
        let is_logged = match (header.u8(18)?, header.u8(19)?) {
            (1, 1) => false,
            (2, 2) => true,
            _ => return Err(invalid("an SQLite database of an unknown version")),
        };
        let usable = bytes.saturating_sub(u32::from(header.u8(20)?));
        let count = u32::try_from(database.length()? / u64::from(bytes)).unwrap_or(u32::MAX);
        let mut pages =
            Self { database, log: None, logged: HashMap::new(), count, bytes, usable: length(usable)? };
        // The least that the format allows, and that the sums below need.
        if usable < 480 || header.u32(56)? > 1 {
            return Err(invalid("an SQLite database of an unknown form"));
        }
        if let Some(log) = log.filter(|_| is_logged) {
            pages.read_log(&log)?;
            pages.log = Some(log);
        }
        Ok(pages)
    }

    /// Finds the versions of pages that were committed. What follows the first frame that does not belong is left over
    /// from earlier, or not yet whole.
    fn read_log(&mut self, log: &S) -> io::Result<()> {
        let length_of_log = log.length()?;
        if length_of_log < WAL_HEADER_BYTES {
            return Ok(());
        }
        let mut header = [0; 32];
        log.fill_at(&mut header, 0)?;
        let is_big_endian = match Bytes(&header).u32(0)? {
            0x377f_0682 => false,
            0x377f_0683 => true,
            // What begins otherwise was never begun.
            _ => return Ok(()),
        };
        let mut sum = Checksum { is_big_endian, sums: (0, 0) };
        let (summed, expected) = header.split_at(24);
        sum.add(summed);
        if !sum.is(Bytes(expected))? || Bytes(&header).u32(8)? != self.bytes {
            return Ok(());
        }
        let salts = header.get(16..24).unwrap_or_default().to_vec();
        let frame_bytes = FRAME_HEADER_BYTES + u64::from(self.bytes);
        let mut frame = vec![0; length(self.bytes)? + 24];
        let mut pending = HashMap::new();
        let count_max = u64::from(self.count).saturating_add(length_of_log / frame_bytes);
        let mut at = WAL_HEADER_BYTES;
        while at.saturating_add(frame_bytes) <= length_of_log {
            log.fill_at(&mut frame, at)?;
            let (header, page) = frame.split_at(24);
            let (numbers, rest) = header.split_at(8);
            let (frame_salts, expected) = rest.split_at(8);
            sum.add(numbers);
            sum.add(page);
            if frame_salts != salts || !sum.is(Bytes(expected))? {
                break;
            }
            let (number, count) = (Bytes(numbers).u32(0)?, Bytes(numbers).u32(4)?);
            pending.insert(number, at + FRAME_HEADER_BYTES);
            if u64::from(count) > count_max {
                return Err(invalid("a log of more pages than there are"));
            }
            if count != 0 {
                self.logged.extend(pending.drain());
                self.count = count;
            }
            at += frame_bytes;
        }
        Ok(())
    }

    fn page(&self, number: u32) -> io::Result<Vec<u8>> {
        if number == 0 || number > self.count {
            return Err(invalid("a page that cannot be"));
        }
        let mut page = vec![0; length(self.bytes)?];
        match (self.logged.get(&number), &self.log) {
            (Some(offset), Some(log)) => log.fill_at(&mut page, *offset)?,
            _ => self.database.fill_at(&mut page, u64::from(number - 1) * u64::from(self.bytes))?,
        }
        Ok(page)
    }

    /// The rows of the table whose tree has this root, in order.
    fn cells(&self, root: u32) -> io::Result<Vec<Cell>> {
        let mut cells = Vec::new();
        // A tree that shares pages or turns in a circle would be without end.
        let mut pages_left = self.count;
        let mut bytes_left = u64::from(self.count) * u64::from(self.bytes);
        let mut path: Vec<Vec<u32>> = vec![vec![root]];
        while let Some(level) = path.last_mut() {
            let Some(number) = level.pop() else {
                path.pop();
                continue;
            };
            pages_left = pages_left.checked_sub(1).ok_or_else(|| invalid("a tree without an end"))?;
            let page = self.page(number)?;
            let (page, start) = (Bytes(&page), if number == 1 { 100 } else { 0 });
            let count = page.u16(start + 3)?;
            match page.u8(start)? {
                LEAF => {
                    for index in 0..count {
                        let (row_bytes, _) = page.varint(page.cell(start + 8, index)?)?;
                        bytes_left = bytes_left
                            .checked_sub(row_bytes.unsigned_abs())
                            .ok_or_else(|| invalid("rows that are longer than the database"))?;
                        cells.push(Cell { page: number, index });
                    }
                }
                INTERIOR => {
                    if path.len() >= DEPTH_MAX {
                        return Err(invalid("a tree that is too deep"));
                    }
                    let below = (0..count).map(|index| page.u32(page.cell(start + 12, index)?));
                    // Taken from the end.
                    let mut below: Vec<u32> =
                        below.chain([page.u32(start + 8)]).collect::<io::Result<_>>()?;
                    below.reverse();
                    path.push(below);
                }
                _ => return Err(invalid("a page of a table that is none")),
            }
            if cells.len() > PACKAGES_MAX {
                return Err(invalid("more rows than are possible"));
            }
        }
        Ok(cells)
    }

    /// The bytes of a row.
    fn row(&self, cell: Cell) -> io::Result<Vec<u8>> {
        let page = self.page(cell.page)?;
        let page = Bytes(&page);
        let start = if cell.page == 1 { 108 } else { 8 };
        let at = page.cell(start, cell.index)?;
        let (bytes, at) = page.varint(at)?;
        // The number of the row.
        let (_, at) = page.varint(at)?;
        let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes <= BLOB_BYTES_MAX);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| invalid("a row is too long"))?;
        let most = self.usable - 35;
        if bytes <= most {
            return Ok(page.part(at, bytes)?.to_vec());
        }
        // What does not fit goes on in a chain of pages; how much is here is chosen so that the last of them is full.
        let least = (self.usable - 12) * 32 / 255 - 23;
        let here = least + (bytes - least) % (self.usable - 4);
        let here = if here <= most { here } else { least };
        let mut row = page.part(at, here)?.to_vec();
        let mut next = page.u32(at + here)?;
        while row.len() < bytes {
            let page = self.page(next)?;
            let page = Bytes(&page);
            let part = (bytes - row.len()).min(self.usable - 4);
            row.extend_from_slice(page.part(4, part)?);
            next = page.u32(0)?;
        }
        Ok(row)
    }
}

const INTERIOR: u8 = 5;
const LEAF: u8 = 13;

/// A value of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    Null,
    Integer(i64),
    Blob(&'a [u8]),
    Text(&'a [u8]),
}

/// The first values of a row. Where there are fewer, the rest is null; no number here has a fraction.
fn columns(row: &[u8]) -> io::Result<[Value<'_>; COLUMNS]> {
    let row = Bytes(row);
    let (header_bytes, mut at) = row.varint(0)?;
    let header_bytes =
        usize::try_from(header_bytes).map_err(|_impossible| invalid("a row without a header"))?;
    let mut data = header_bytes;
    let mut values = [Value::Null; COLUMNS];
    for value in &mut values {
        if at >= header_bytes {
            break;
        }
        let (kind, next) = row.varint(at)?;
        at = next;
        let integer = |bytes: usize| {
            let part = row.part(data, bytes)?;
            let first = part.first().map_or(0, |byte| i64::from(byte.cast_signed()));
            Ok::<_, io::Error>(part.iter().skip(1).fold(first, |sum, byte| sum << 8 | i64::from(*byte)))
        };
        let bytes;
        (*value, bytes) = match kind {
            0 => (Value::Null, 0),
            1 => (Value::Integer(integer(1)?), 1),
            2 => (Value::Integer(integer(2)?), 2),
            3 => (Value::Integer(integer(3)?), 3),
            4 => (Value::Integer(integer(4)?), 4),
            5 => (Value::Integer(integer(6)?), 6),
            6 => (Value::Integer(integer(8)?), 8),
            8 => (Value::Integer(0), 0),
            9 => (Value::Integer(1), 0),
            12.. => {
                let bytes =
                    usize::try_from((kind - 12) / 2).map_err(|_long| invalid("a value is too long"))?;
                let part = row.part(data, bytes)?;
                (if kind % 2 == 0 { Value::Blob(part) } else { Value::Text(part) }, bytes)
            }
            _ => return Err(invalid("a value of a kind that does not belong here")),
        };
        data += bytes;
    }
    Ok(values)
}

/// The checksum of the log: over pairs of 32-bit words.
struct Checksum {
    is_big_endian: bool,
    sums: (u32, u32),
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        let word = |bytes: [u8; 4]| {
            if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        for pair in bytes.as_chunks::<4>().0.as_chunks::<2>().0 {
            let [first, second] = pair.map(word);
            self.sums.0 = self.sums.0.wrapping_add(first).wrapping_add(self.sums.1);
            self.sums.1 = self.sums.1.wrapping_add(second).wrapping_add(self.sums.0);
        }
    }

    fn is(&self, expected: Bytes<'_>) -> io::Result<bool> {
        Ok(self.sums == (expected.u32(0)?, expected.u32(4)?))
    }
}

/// Bytes that numbers are read from, and that end.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn part(self, at: usize, bytes: usize) -> io::Result<&'a [u8]> {
        let part = at.checked_add(bytes).and_then(|end| self.0.get(at..end));
        part.ok_or_else(|| invalid("the database leads out of a page"))
    }

    fn array<const N: usize>(self, at: usize) -> io::Result<[u8; N]> {
        Ok(self.part(at, N)?.first_chunk().copied().unwrap_or([0; N]))
    }

    fn u8(self, at: usize) -> io::Result<u8> {
        self.array(at).map(u8::from_be_bytes)
    }

    fn u16(self, at: usize) -> io::Result<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    fn u32(self, at: usize) -> io::Result<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    /// Where the cell of this index begins.
    fn cell(self, pointers: usize, index: u16) -> io::Result<usize> {
        self.u16(pointers + usize::from(index) * 2).map(usize::from)
    }

    /// A number of one to nine bytes, and where it ends.
    fn varint(self, at: usize) -> io::Result<(i64, usize)> {
        let mut number = 0_u64;
        for length in 0..8 {
            let byte = self.u8(at + length)?;
            number = number << 7 | u64::from(byte & 0x7f);
            if byte < 0x80 {
                return Ok((number.cast_signed(), at + length + 1));
            }
        }
        Ok(((number << 8 | u64::from(self.u8(at + 8)?)).cast_signed(), at + 9))
    }
}

fn length(bytes: u32) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_impossible| invalid("pages of impossible length"))
}
