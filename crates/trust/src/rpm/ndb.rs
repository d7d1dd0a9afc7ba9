//! rpm's own database format, `Packages.db`: what openSUSE and SUSE use.
//!
//! Bytes, little endian: header (32): magic, version, generation, pages of slots, next index; slots of 16 bytes up to
//! the end of those pages: magic, index, first block, blocks; then blocks of 16 bytes. A package's header lies in its
//! blocks between a head (magic, index, time, length) and a tail (Adler-32 of all before it, length, magic).

use std::io;

use policy::baseline::ReadAt;

use super::{Blobs, PACKAGES_MAX, invalid};

const PAGE_BYTES: u64 = 4096;
const BLOCK_BYTES: u64 = 16;
const HEAD_BYTES: usize = 16;
const TAIL_BYTES: usize = 12;

/// A database of this format, with its slots.
#[derive(Debug)]
pub struct Ndb<S> {
    source: S,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    index: u32,
    block: u32,
    blocks: u32,
}

impl<S: ReadAt> Ndb<S> {
    /// Reads the slots.
    ///
    /// # Errors
    /// `InvalidData` when it is not such a database, or its slots cannot be; from the source.
    pub fn open(source: S) -> io::Result<Self> {
        let length = source.length()?;
        let mut header = [0; 32];
        source.fill_at(&mut header, 0)?;
        let [magic, version, _generation, pages, ..] = words::<8>(&header);
        if magic != u32::from_le_bytes(*b"RpmP") || version != 0 {
            return Err(invalid("not a package database of a known version"));
        }
        let pages = u64::from(pages);
        if pages == 0 || pages.saturating_mul(PAGE_BYTES) > length {
            return Err(invalid("the package database is cut off"));
        }
        let mut slots = Vec::new();
        let mut page = vec![0; 4096];
        for number in 0..pages {
            source.fill_at(&mut page, number * PAGE_BYTES)?;
            // The header lies where the first two would.
            for slot in page.as_chunks::<16>().0.iter().skip(if number == 0 { 2 } else { 0 }) {
                let [magic, index, block, blocks] = words(slot);
                if magic != u32::from_le_bytes(*b"Slot") {
                    return Err(invalid("a slot of the package database is damaged"));
                }
                if block != 0 {
                    slots.push(Slot { index, block, blocks });
                }
            }
            if slots.len() > PACKAGES_MAX {
                return Err(invalid("more packages than are possible"));
            }
        }
        // Blobs that overlap would let a small file be read without end.
        slots.sort_by_key(|slot| slot.block);
        let mut free = pages * (PAGE_BYTES / BLOCK_BYTES);
        for slot in &slots {
            let end = u64::from(slot.block) + u64::from(slot.blocks);
            if u64::from(slot.block) < free || slot.blocks == 0 || end.saturating_mul(BLOCK_BYTES) > length {
                return Err(invalid("a slot of the package database leads nowhere"));
            }
            free = end;
        }
        Ok(Self { source, slots })
    }
}

impl<S: ReadAt> Blobs for Ndb<S> {
    fn count(&self) -> usize {
        self.slots.len()
    }

    fn blob(&self, number: usize) -> io::Result<Vec<u8>> {
        let damaged = || invalid("a package header is damaged");
        let slot = self.slots.get(number).ok_or_else(damaged)?;
        let bytes = u64::from(slot.blocks) * BLOCK_BYTES;
        let length = usize::try_from(bytes).ok().filter(|_| bytes <= super::BLOB_BYTES_MAX);
        let mut blob = vec![0; length.ok_or_else(|| invalid("a package header is too long"))?];
        self.source.fill_at(&mut blob, u64::from(slot.block) * BLOCK_BYTES)?;
        let (covered, tail) = blob.split_last_chunk::<TAIL_BYTES>().ok_or_else(damaged)?;
        let head = covered.first_chunk::<HEAD_BYTES>().ok_or_else(damaged)?;
        let [start, index, _time, length] = words(head);
        let [adler, length_again, end] = words(tail);
        let is_whole = start == u32::from_le_bytes(*b"BlbS")
            && end == u32::from_le_bytes(*b"BlbE")
            && index == slot.index
            && length == length_again
            && adler == adler32(covered);
        let length = usize::try_from(length).ok().filter(|_| is_whole).ok_or_else(damaged)?;
        blob.drain(..HEAD_BYTES);
        // What is between the header and the tail fills up the last block.
        if length > blob.len() - TAIL_BYTES {
            return Err(damaged());
        }
        blob.truncate(length);
        Ok(blob)
    }
}

/// The little-endian numbers in these bytes.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// RFC 1950, section 9.
fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65521;
    let (mut a, mut b) = (1_u32, 0_u32);
    // As many as cannot overflow.
    for chunk in bytes.chunks(5552) {
        for byte in chunk {
            a += u32::from(*byte);
            b += a;
        }
        a %= MODULUS;
        b %= MODULUS;
    }
    b << 16 | a
}
