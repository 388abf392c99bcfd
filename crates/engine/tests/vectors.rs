//! The shared vectors in tests/vectors: the engine and the Python codec read the same bytes alike.

use serde::Deserialize;
use ztna_engine::classify::{Class, classify};

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    hex: String,
    class: String,
    service_hex: Option<String>,
    packet_offset: Option<usize>,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn datagrams_are_classified_as_the_vectors_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/classify.json");
    let file: File = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(file.vectors.len() > 10);
    for vector in file.vectors {
        let datagram = bytes(&vector.hex);
        let (class, service, offset) = match classify(&datagram) {
            Class::Control => ("control", None, None),
            Class::ServiceRouted { service, packet_offset } => {
                ("service_routed", Some(service.to_vec()), Some(packet_offset))
            }
            Class::Packet => ("packet", None, None),
            Class::Ignored(_) => ("ignored", None, None),
        };
        assert_eq!(class, vector.class, "{}", vector.name);
        if class == "service_routed" {
            assert_eq!(service, vector.service_hex.as_deref().map(bytes), "{}", vector.name);
            assert_eq!(offset, vector.packet_offset, "{}", vector.name);
        }
    }
}
