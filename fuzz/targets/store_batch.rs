//! A batch of a journal volume whose header checksums are right.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::batch(data));
