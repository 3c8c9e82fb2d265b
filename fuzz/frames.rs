#![no_main]

use switchover::clients::properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    properties::frames(bytes, bytes.len());
});
