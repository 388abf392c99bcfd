//! The one error type of the engine's set-up calls.

/// A setting is unusable or the system refused a resource; the text says what to change.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

impl EngineError {
    /// An error with `context` before the foreign error's own text.
    pub(crate) fn of(context: &str, error: impl std::fmt::Display) -> Self {
        Self(format!("{context}: {error}"))
    }
}
