#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drawbridge::protocols::voltchat::fuzzing::verify(data));
