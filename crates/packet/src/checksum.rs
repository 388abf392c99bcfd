//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// The one's complement sum of `bytes` as 16-bit big-endian words, not yet folded.
///
/// A last odd byte counts as the high half of a word. Sums of parts may be added up as long as every
/// part but the last has an even length.
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let total: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    total + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

/// Folds a sum into 16 bits with end-around carry.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// The checksum field that belongs to a sum taken with the field as zero.
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// The effect of a change of data on every checksum that covers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// The change from `old` to `new`, both of the same even length.
    pub fn between(old: &[u8], new: &[u8]) -> Self {
        let (old, _) = old.as_chunks::<2>();
        let (new, _) = new.as_chunks::<2>();
        let mut delta = Self::default();
        for (old, new) in old.iter().zip(new) {
            delta.word(u16::from_be_bytes(*old), u16::from_be_bytes(*new));
        }
        delta
    }

    /// Adds the change of one word.
    pub fn word(&mut self, old: u16, new: u16) {
        self.0 += u64::from(!old) + u64::from(new);
    }

    /// Adds another change.
    pub fn add(&mut self, other: Self) {
        self.0 += other.0;
    }

    /// The checksum after the change: `HC' = ~(~HC + ~m + m')`, RFC 1624 equation 3.
    pub fn apply(self, checksum: u16) -> u16 {
        finish(u64::from(!checksum) + self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7];
        assert_eq!(fold(sum(&data)), 0xDDF2);
        assert_eq!(finish(sum(&data)), 0x220D);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000; equation 2 gave 0xFFFF.
        let mut delta = Delta::default();
        delta.word(0x5555, 0x3285);
        assert_eq!(delta.apply(0xDD2F), 0x0000);
    }

    #[test]
    fn an_odd_last_byte_is_padded_on_the_right() {
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
        assert_eq!(sum(&[]), 0);
    }
}
