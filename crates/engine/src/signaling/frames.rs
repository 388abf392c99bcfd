//! A stream cut into frames (docs/protocol.md section 4.1). Pure: no stream, no clock.
//!
//! A frame is a length (4 bytes, big endian, at most [`MAX_FRAME`]) and so many bytes of payload.

use bytes::Bytes;

/// The largest payload, its length field not counted.
pub const MAX_FRAME: usize = 65_536;
/// Bytes of the length field.
const LENGTH: usize = 4;

/// Cuts one stream into frames; holds at most one unfinished frame and what came with its end.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Where in the buffer the next frame begins.
    at: usize,
}

/// The length of a frame is over [`MAX_FRAME`], so nothing says where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge(pub u32);

impl FrameReader {
    /// Adds bytes in the order of the stream.
    pub fn feed(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The payload of the next whole frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// From the first bad length on, at each call.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, TooLarge> {
        let rest = &self.buffer[self.at..];
        if let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() {
            let length = u32::from_be_bytes(*length);
            if length as usize > MAX_FRAME {
                return Err(TooLarge(length));
            }
            if let Some(payload) = rest.get(..length as usize) {
                self.at += LENGTH + payload.len();
                return Ok(Some(Bytes::copy_from_slice(payload)));
            }
        }
        if self.at > 0 {
            // Into a buffer of its own: what is unfinished must not hold the room of a frame before it.
            (self.buffer, self.at) = (rest.to_vec(), 0);
        }
        Ok(None)
    }

    /// Bytes of memory that it takes.
    pub fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// Bytes fed and not yet given out.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.at
    }
}

/// The frame around a payload.
///
/// # Errors
/// For a payload over [`MAX_FRAME`].
pub fn frame(payload: &[u8]) -> Result<Bytes, TooLarge> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if payload.len() > MAX_FRAME {
        return Err(TooLarge(length));
    }
    Ok([&length.to_be_bytes(), payload].concat().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payloads(reader: &mut FrameReader) -> Result<Vec<Vec<u8>>, TooLarge> {
        let mut all = Vec::new();
        while let Some(payload) = reader.next_frame()? {
            all.push(payload.to_vec());
        }
        Ok(all)
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in prop::collection::vec(1..200usize, 1..40),
        ) {
            let stream: Vec<u8> = sent.iter().flat_map(|p| frame(p).unwrap().to_vec()).collect();
            let (mut reader, mut got, mut rest) = (FrameReader::default(), vec![], &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(rest.len().min(*cut));
                reader.feed(now);
                got.extend(payloads(&mut reader).unwrap());
                rest = later;
            }
            prop_assert_eq!(got, sent);
            prop_assert_eq!(reader.pending(), 0);
        }
    }

    #[test]
    fn frames_before_a_bad_length_are_given_out_and_none_after() {
        let mut reader = FrameReader::default();
        reader.feed(&frame(b"good").unwrap());
        reader.feed(&[0, 1, 0, 1]);
        assert_eq!(reader.next_frame(), Ok(Some(Bytes::from_static(b"good"))));
        assert_eq!(reader.next_frame(), Err(TooLarge(65_537)));
        reader.feed(&frame(b"after").unwrap());
        assert_eq!(reader.next_frame(), Err(TooLarge(65_537)));
    }

    #[test]
    fn the_largest_frame_passes_and_a_larger_one_is_not_made() {
        let largest = vec![7; MAX_FRAME];
        let mut reader = FrameReader::default();
        reader.feed(&frame(&largest).unwrap());
        assert_eq!(payloads(&mut reader), Ok(vec![largest]));
        assert_eq!(frame(&[0; MAX_FRAME + 1]), Err(TooLarge(65_537)));
    }
}
