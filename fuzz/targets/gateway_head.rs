//! The head of an S3 request: path, query, signature, conditions, attributes, checksums.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_s3::fuzzing::head(data));
