//! Dates, ranges, percent escapes, base64, tokens.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_s3::fuzzing::words(data));
