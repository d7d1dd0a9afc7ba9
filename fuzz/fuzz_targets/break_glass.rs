//! See `fuzz::break_glass`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::break_glass(data));
