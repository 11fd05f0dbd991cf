//! The policy of a bucket, and what it decides.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_s3::fuzzing::policy(data));
