//! See `fuzz::agent_protocol`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::agent_protocol(data));
