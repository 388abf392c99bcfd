//! Settings by their names, as Python gives and is shown them.

use std::{net::IpAddr, time::Duration};

use pyo3::{exceptions::PyTypeError, prelude::*, types::PyDict};
use ztna_engine::settings::{Setting, Settings};

use crate::{
    EngineError,
    config::{parsed, prefix},
};

/// Sets what is given. Raises ``TypeError`` for a name that is none, ``EngineError`` for a value.
pub(crate) fn set<T>(
    config: &mut T,
    settings: Settings<T>,
    given: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    for (name, value) in given.into_iter().flatten() {
        let name: String = name.extract()?;
        let Some((_, setting)) = settings.iter().find(|(known, _)| *known == name) else {
            return Err(PyTypeError::new_err(format!("there is no setting {name}")));
        };
        replace(setting(config), &value)
            .map_err(|e| EngineError::new_err(format!("{name}: {}", e.value(value.py()))))?;
    }
    Ok(())
}

fn replace(setting: Setting<'_>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    match setting {
        Setting::Flag(flag) => *flag = value.extract()?,
        Setting::U16(number) => *number = value.extract()?,
        Setting::U32(number) => *number = value.extract()?,
        Setting::U64(number) => *number = value.extract()?,
        Setting::Size(size) => *size = value.extract()?,
        Setting::Time(time) => *time = Duration::from_millis(value.extract()?),
        Setting::V4(address) => *address = parsed(value.extract()?)?,
        Setting::V6(address) => *address = parsed(value.extract()?)?,
        Setting::NetworkV4(network) => *network = prefix(value.extract()?)?,
        Setting::NetworkV6(network) => *network = prefix(value.extract()?)?,
    }
    Ok(())
}

/// All of them as they are, in the form in which they are given.
pub(crate) fn shown<'py, T: Clone>(
    py: Python<'py>,
    config: &T,
    settings: Settings<T>,
) -> PyResult<Bound<'py, PyDict>> {
    let (mut config, shown) = (config.clone(), PyDict::new(py));
    let network = |address: IpAddr, length: u8| format!("{address}/{length}");
    for (name, setting) in settings {
        match setting(&mut config) {
            Setting::Flag(flag) => shown.set_item(name, *flag),
            Setting::U16(number) => shown.set_item(name, *number),
            Setting::U32(number) => shown.set_item(name, *number),
            Setting::U64(number) => shown.set_item(name, *number),
            Setting::Size(size) => shown.set_item(name, *size),
            Setting::Time(time) => shown.set_item(name, time.as_millis()),
            Setting::V4(address) => shown.set_item(name, address.to_string()),
            Setting::V6(address) => shown.set_item(name, address.to_string()),
            Setting::NetworkV4((address, length)) => {
                shown.set_item(name, network((*address).into(), *length))
            }
            Setting::NetworkV6((address, length)) => {
                shown.set_item(name, network((*address).into(), *length))
            }
        }?;
    }
    Ok(shown)
}
