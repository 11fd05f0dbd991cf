//! A browser's form: its parts, its policy, its file, in pieces of any size.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_s3::fuzzing::form(data));
