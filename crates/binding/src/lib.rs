//! Python's view of the engine: conversions only. The other side is described in `_engine.pyi`.

mod command;
mod config;
mod engine;
mod event;
mod settings;
mod tunnel;

use pyo3::prelude::*;

pyo3::create_exception!(
    intermediate_server._engine,
    EngineError,
    pyo3::exceptions::PyException,
    "The engine refused a setting or cannot go on; the text says what to change."
);

fn refused(error: ztna_engine::EngineError) -> PyErr {
    EngineError::new_err(error.to_string())
}

#[pymodule(name = "_engine")]
mod module {
    #[pymodule_export]
    use crate::{
        EngineError,
        command::{Command, Target},
        config::{ClientTls, ConnectConfig, ListenConfig, ServerTls},
        engine::{Engine, ServiceCounters},
        event::{Event, Totals},
        tunnel::{Backend, Forward, TunMap, inner_address, service_addresses},
    };

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
