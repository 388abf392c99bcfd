//! A stream gives the same frames however it is cut, none is larger than allowed, and what is held is no
//! more than one frame and what came with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ztna_engine::frames::{FrameReader, MAX_FRAME, frame};

/// The frames of a stream that comes in pieces of this size, and whether its end is bad.
fn cut(stream: &[u8], size: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut reader, mut frames) = (FrameReader::default(), Vec::new());
    for piece in stream.chunks(size) {
        reader.feed(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(payload)) => frames.push(payload.to_vec()),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
        assert!(reader.pending() < 4 + MAX_FRAME);
    }
    (frames, false)
}

fuzz_target!(|input: (u16, Vec<u8>)| {
    let (size, stream) = input;
    let whole = cut(&stream, stream.len().max(1));
    assert_eq!(cut(&stream, usize::from(size).max(1)), whole);
    let again: Vec<u8> =
        whole.0.iter().flat_map(|payload| frame(payload).unwrap().to_vec()).collect();
    assert!(stream.starts_with(&again));
});
