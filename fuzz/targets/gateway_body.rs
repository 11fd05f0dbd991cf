//! A body in aws-chunked framing, in pieces of any size.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_s3::fuzzing::body(data));
