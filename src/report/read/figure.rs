//! Numbers that can be drawn.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A measured figure: not negative, and small enough that sums and positions stay finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub(in super::super) struct Figure(pub(in super::super) f64);

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        if (0.0..=LARGEST).contains(&value) {
            Ok(Self(value))
        } else {
            Err(Error::custom(format_args!("{value} is not a figure: expected 0 to {LARGEST:e}")))
        }
    }
}

/// Named shares of a whole, in the order of the file; null is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Parts(pub(in super::super) Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PartsVisitor)
    }
}

struct PartsVisitor;

impl<'de> Visitor<'de> for PartsVisitor {
    type Value = Parts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of names and figures")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts, A::Error> {
        let mut parts = Vec::new();
        while let Some((name, figure)) = map.next_entry::<String, Option<Figure>>()? {
            parts.extend(figure.map(|figure| (name, figure.0)));
        }
        Ok(Parts(parts))
    }
}

/// More than any figure comes to: bytes of a petabyte, milliseconds of 30 000 years.
const LARGEST: f64 = 1e15;
