//! Everything that crosses between the control plane and the engine.

pub mod limits;
