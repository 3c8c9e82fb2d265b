//! Adapters between the formats of single values and serde and schemars: `#[serde(with = "As::<Number<u16, 1, 1000>>")]`.
//!
//! A [`Format`] parses a text, writes a value and describes itself in the JSON Schema. With it, a field declares its range once,
//! and its type stays a standard type. The formats are in `value`. Only the types of the configuration use this module.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::Value;

/// The format of one value.
pub(super) trait Format {
    type Value;
    /// The allowed forms, for the message about any other.
    const FORMS: &'static str = "one value";

    /// The error has the value, what is allowed, and an example.
    fn read(text: &str) -> Result<Self::Value, String>;
    fn write(value: &Self::Value) -> Value;
    fn schema(generator: &mut SchemaGenerator) -> Schema;

    /// Always asks for a string, even if the value looks like a number, so that `version: 1.40` keeps its zero. A format with a
    /// long form, as keys or as a list, asks for any value.
    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(Form::<Self>(PhantomData))
    }

    fn from_keys<'de, D: Deserializer<'de>>(_: D) -> Result<Self::Value, D::Error> {
        Err(D::Error::invalid_type(Unexpected::Map, &Self::FORMS))
    }

    fn from_list<'de, D: Deserializer<'de>>(_: D) -> Result<Self::Value, D::Error> {
        Err(D::Error::invalid_type(Unexpected::Seq, &Self::FORMS))
    }
}

/// Passes each form of a value to its function of `F`.
pub(super) struct Form<F: ?Sized>(pub PhantomData<F>);

impl<'de, F: Format + ?Sized> Visitor<'de> for Form<F> {
    type Value = F::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(F::FORMS)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<F::Value, E> {
        F::read(text).map_err(E::custom)
    }

    /// For serde_yaml; the reader of the configuration file passes only strings.
    fn visit_u64<E: Error>(self, number: u64) -> Result<F::Value, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<F::Value, A::Error> {
        F::from_keys(MapAccessDeserializer::new(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<F::Value, A::Error> {
        F::from_list(SeqAccessDeserializer::new(list))
    }
}

/// A value in the format `F`.
pub(super) struct As<F>(PhantomData<F>);

/// An optional value without a default.
pub(super) struct Maybe<F>(PhantomData<F>);

/// A value, or `off`.
pub(super) struct OrOff<F>(PhantomData<F>);

/// A list of values.
pub(super) struct List<F>(PhantomData<F>);

/// A map whose keys have the format `K`.
pub(super) struct Map<K, T>(PhantomData<(K, T)>);

/// A value with the traits that serde's collections require. `P` is `PhantomData<F>`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Formatted<V, P>(V, P);

type Item<F> = Formatted<<F as Format>::Value, PhantomData<F>>;

impl<'de, F: Format> Deserialize<'de> for Formatted<F::Value, PhantomData<F>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        F::deserialize(deserializer).map(|value| Self(value, PhantomData))
    }
}

impl<F: Format> As<F> {
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<F::Value, D::Error> {
        F::deserialize(deserializer)
    }

    pub(super) fn serialize<S: Serializer>(value: &F::Value, serializer: S) -> Result<S::Ok, S::Error> {
        F::write(value).serialize(serializer)
    }
}

impl<F: Format> Format for Maybe<F> {
    type Value = Option<F::Value>;

    fn read(text: &str) -> Result<Self::Value, String> {
        F::read(text).map(Some)
    }

    fn write(value: &Self::Value) -> Value {
        value.as_ref().map_or(Value::Null, F::write)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        F::schema(generator)
    }
}

impl<F: Format> Format for OrOff<F> {
    type Value = Option<F::Value>;

    fn read(text: &str) -> Result<Self::Value, String> {
        if text == "off" { Ok(None) } else { F::read(text).map(Some).map_err(|message| message + ", or off") }
    }

    fn write(value: &Self::Value) -> Value {
        value.as_ref().map_or("off".into(), F::write)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"const": "off"}, F::schema(generator)]})
    }
}

impl<F: Format> List<F> {
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<F::Value>, D::Error> {
        Ok(Vec::<Item<F>>::deserialize(deserializer)?.into_iter().map(|item| item.0).collect())
    }

    pub(super) fn serialize<S: Serializer>(values: &[F::Value], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(F::write))
    }
}

impl<K: Format<Value: Ord>, T> Map<K, T> {
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<K::Value, T>, D::Error>
    where
        T: Deserialize<'de>,
    {
        let entries = BTreeMap::<Item<K>, T>::deserialize(deserializer)?;
        Ok(entries.into_iter().map(|(key, value)| (key.0, value)).collect())
    }

    pub(super) fn serialize<S: Serializer>(values: &BTreeMap<K::Value, T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize,
    {
        serializer.collect_map(values.iter().map(|(key, value)| (K::write(key), value)))
    }
}

/// Implements `JsonSchema` with a schema that is inlined in its field.
macro_rules! inline_schema {
    ([$($bounds:tt)*] $type:ty, $generator:ident => $schema:expr) => {
        impl<$($bounds)*> JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                std::any::type_name::<Self>().into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

inline_schema!([F: Format] As<F>, generator => F::schema(generator));
inline_schema!([F: Format] List<F>, generator => json_schema!({"type": "array", "items": F::schema(generator)}));
inline_schema!([K: Format, T: JsonSchema] Map<K, T>, generator => json_schema!({
    "type": "object",
    "propertyNames": K::schema(generator),
    "additionalProperties": generator.subschema_for::<T>(),
}));
