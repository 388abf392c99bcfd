//! The shared vectors in tests/vectors: the engine and the Python codec read the same bytes alike.

use serde::Deserialize;
use ztna_engine::{
    classify::{Class, classify},
    frames::FrameReader,
};

#[derive(Deserialize)]
struct File<V> {
    vectors: Vec<V>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    hex: String,
    class: String,
    service_hex: Option<String>,
    packet_offset: Option<usize>,
}

#[derive(Deserialize)]
struct Frame {
    name: String,
    hex: String,
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
    let file: File<Vector> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
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

#[test]
fn signaling_frames_are_cut_as_the_vectors_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/signaling.json");
    let file: File<Frame> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(file.vectors.len() > 5);
    let mut reader = FrameReader::default();
    for vector in file.vectors {
        let frame = bytes(&vector.hex);
        let (last, rest) = frame.split_last().expect("a frame has a length");
        reader.feed(rest);
        assert_eq!(reader.next_frame(), Ok(None), "{}", vector.name);
        reader.feed(&[*last]);
        let payload = reader.next_frame().unwrap().expect(&vector.name);
        assert_eq!(payload, frame[4..], "{}", vector.name);
    }
}
