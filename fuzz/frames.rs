#![no_main]

use switchover::proxy::properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    properties::frames(bytes, bytes.len());
});
