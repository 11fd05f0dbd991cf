//! An XML document that a client sent.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_s3::fuzzing::document(data));
