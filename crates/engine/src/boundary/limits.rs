//! The identity class and the rates of a connection, set by the control plane.

/// Rates of a limiter, each way; 0 is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes of relayed packets a second.
    pub bytes_per_second: u64,
    /// Relayed packets a second.
    pub packets_per_second: u64,
}

/// The kind of identity that a connection has proved, set together with its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(usize)]
pub enum IdentityClass {
    /// The control plane has granted it nothing yet.
    #[default]
    Unregistered,
    /// It proved a certificate.
    Certificate,
    /// It has no certificate.
    Anonymous,
}

impl IdentityClass {
    /// All classes, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Unregistered, Self::Certificate, Self::Anonymous];

    /// A stable word for metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::Certificate => "certificate",
            Self::Anonymous => "anonymous",
        }
    }
}
