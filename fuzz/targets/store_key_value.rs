//! Blocks, directories, footers and manifests of the key-value store.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::key_value(data));
