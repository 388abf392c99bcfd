//! Invariant: any bytes are classified without a panic, and what is called service-routed really holds that id.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ztna_engine::classify::{Class, classify};

fuzz_target!(|data: &[u8]| {
    if let Class::ServiceRouted { service, packet_offset } = classify(data) {
        assert_eq!(data[0], 0x2F);
        assert_eq!(&data[2..packet_offset], service);
        assert!(packet_offset <= data.len());
    }
});
