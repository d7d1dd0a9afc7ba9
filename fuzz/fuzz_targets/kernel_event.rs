//! See `fuzz::kernel_event`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::kernel_event(data));
