#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fdholder_fuzz::link(data));
