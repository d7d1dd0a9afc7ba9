//! See `fuzz::odata`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::odata(data));
