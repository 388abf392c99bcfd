//! Any DATAGRAM has exactly one class, and every offset it names lies inside the DATAGRAM.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ztna_engine::classify::{Class, Ignored, classify};

fuzz_target!(|datagram: &[u8]| match classify(datagram) {
    Class::Control => {
        assert!(matches!(datagram[0], 0x10 | 0x11));
        assert!(datagram.len() >= 2 + usize::from(datagram[1]));
    }
    Class::ServiceRouted { service, packet_offset } => {
        assert_eq!(datagram[0], 0x2F);
        assert_eq!(service, &datagram[2..packet_offset]);
        assert!(datagram.len() >= packet_offset + 20);
    }
    Class::Packet => {
        assert!(!matches!(datagram[0], 0x01 | 0x10 | 0x11 | 0x2F | 0x5A));
        assert!(datagram.len() >= 20);
    }
    Class::Ignored(Ignored::Empty) => assert!(datagram.is_empty()),
    Class::Ignored(_) => assert!(!datagram.is_empty()),
});
