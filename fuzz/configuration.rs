#![no_main]

use switchover::proxy::properties;

libfuzzer_sys::fuzz_target!(|text: &str| {
    properties::configuration(text);
});
