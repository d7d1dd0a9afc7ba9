//! What a label needs to know of a program's file (`elf(5)`).

use std::os::fd::AsFd;

/// The kernel refuses files whose headers take more than 64 KiB.
const HEADERS_MAX: u16 = 2048;
const GNU_STACK: u32 = 0x6474_e551;
const EXECUTABLE: u32 = 1;

/// Whether the kernel gives a program of this file a stack that is code. What is no ELF file has none of its own.
///
/// The kernel reads the same bytes again when it executes the file, so this holds for as long as its label does.
pub(crate) fn stack_is_code(file: impl AsFd) -> bool {
    let mut header = [0; 64];
    if !read_at(&file, &mut header, 0) || !header.starts_with(b"\x7fELF") {
        return false;
    }
    // Both classes in the machine's own byte order, which is all that it executes.
    let wide = match header.get(4) {
        Some(2) => true,
        Some(1) => false,
        _ => return false,
    };
    let (start, size, count) = if wide {
        (long(&header, 32), short(&header, 54), short(&header, 56))
    } else {
        (u64::from(word(&header, 28)), short(&header, 42), short(&header, 44))
    };
    let (length, flags_at) = if wide { (56, 4) } else { (32, 24) };
    let mut entry = [0; 56];
    for index in 0..count.min(HEADERS_MAX) {
        let at = start.saturating_add(u64::from(index) * u64::from(size));
        let Some(entry) = entry.get_mut(..length) else { return true };
        if !read_at(&file, entry, at) {
            return true;
        }
        if word(entry, 0) == GNU_STACK {
            return word(entry, flags_at) & EXECUTABLE != 0;
        }
    }
    // Without the header the old architectures take everything that is readable for code.
    !wide
}

fn read_at(file: impl AsFd, buffer: &mut [u8], at: u64) -> bool {
    i64::try_from(at).is_ok_and(|at| {
        nix::sys::uio::pread(file.as_fd(), buffer, at).is_ok_and(|length| length == buffer.len())
    })
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u64::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_ne_bytes)
}

fn short(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use proptest::prelude::*;

    fn file(bytes: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// A program of 64 bits with these headers: type and flags.
    fn program(headers: &[(u32, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[32..40].copy_from_slice(&64_u64.to_ne_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_ne_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(headers.len()).unwrap().to_ne_bytes());
        for (kind, flags) in headers {
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend([0; 48]);
        }
        bytes
    }

    #[test]
    fn the_header_of_the_stack_says_it() {
        assert!(!stack_is_code(file(&program(&[(1, 5), (GNU_STACK, 6)]))));
        assert!(stack_is_code(file(&program(&[(1, 5), (GNU_STACK, 7)]))));
        assert!(!stack_is_code(file(&program(&[(1, 5)]))));
        assert!(!stack_is_code(file(b"#!/bin/sh\n")) && !stack_is_code(file(b"")));
        let cut = program(&[(1, 5), (GNU_STACK, 6)]);
        assert!(stack_is_code(file(&cut[..cut.len() - 1])), "unreadable is the worse");
        let mut narrow = program(&[]);
        narrow[4] = 1;
        assert!(stack_is_code(file(&narrow)));
        assert!(!stack_is_code(std::fs::File::open(std::env::current_exe().unwrap()).unwrap()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, wide: bool) {
            let head = if wide { &b"\x7fELF\x02"[..] } else { b"\x7fELF\x01" };
            let _ = stack_is_code(file(&[head, &bytes].concat()));
        }
    }
}
