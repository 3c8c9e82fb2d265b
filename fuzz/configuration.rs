#![no_main]

use switchover::clients::properties;

libfuzzer_sys::fuzz_target!(|text: &str| {
    properties::configuration(text);
});
