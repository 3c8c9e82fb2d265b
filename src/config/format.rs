//! Adapters between the formats of single values and serde and schemars: `#[serde(with = "As::<Number<u16, 1, 1000>>")]`.
//!
//! A [`Format`] parses a text, writes a value and describes itself in the JSON Schema. With it, a field declares its range once,
//! and its type stays a standard type. The formats are in `value`. Only the types of the configuration use this module.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;

/// The format of one value.
pub(super) trait Format {
    type Value;
    /// The error has the value, what is allowed, and an example.
    fn read(text: &str) -> Result<Self::Value, String>;
    fn write(value: &Self::Value) -> Value;
    fn schema() -> Schema;
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

/// A value with the traits that serde's collections require.
struct Item<F: Format>(F::Value);

impl<F: Format> As<F> {
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<F::Value, D::Error> {
        // Always as a string, even if it looks like a number, so that `version: 1.40` keeps its zero.
        deserializer.deserialize_str(Text::<F>(PhantomData))
    }

    pub(super) fn serialize<S: Serializer>(value: &F::Value, serializer: S) -> Result<S::Ok, S::Error> {
        F::write(value).serialize(serializer)
    }
}

struct Text<F>(PhantomData<F>);

impl<F: Format> Visitor<'_> for Text<F> {
    type Value = F::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<F::Value, E> {
        F::read(text).map_err(E::custom)
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

    fn schema() -> Schema {
        F::schema()
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

    fn schema() -> Schema {
        json_schema!({"anyOf": [{"const": "off"}, F::schema()]})
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
        struct Entries<K, T>(PhantomData<(K, T)>);
        impl<'de, K: Format<Value: Ord>, T: Deserialize<'de>> Visitor<'de> for Entries<K, T> {
            type Value = BTreeMap<K::Value, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("values by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<Item<K>, T>()? {
                    entries.insert(key.0, value);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Entries::<K, T>(PhantomData))
    }

    pub(super) fn serialize<S: Serializer>(values: &BTreeMap<K::Value, T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize,
    {
        serializer.collect_map(values.iter().map(|(key, value)| (K::write(key), value)))
    }
}

impl<'de, F: Format> Deserialize<'de> for Item<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        As::<F>::deserialize(deserializer).map(Self)
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

inline_schema!([F: Format] As<F>, _generator => F::schema());
inline_schema!([F: Format] List<F>, _generator => json_schema!({"type": "array", "items": F::schema()}));
inline_schema!([K: Format, T: JsonSchema] Map<K, T>, generator => json_schema!({
    "type": "object",
    "propertyNames": K::schema(),
    "additionalProperties": generator.subschema_for::<T>(),
}));

/// A value that can be written as one text, or in its long form as keys or as a list.
pub(super) trait TextOr: Sized {
    /// The allowed forms, for the message about any other.
    const EXPECTED: &'static str;

    fn from_text(text: &str) -> Result<Self, String>;

    fn from_keys<'de, D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::invalid_type(Unexpected::Map, &Self::EXPECTED))
    }

    fn from_list<'de, A: SeqAccess<'de>>(_: A) -> Result<Self, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Seq, &Self::EXPECTED))
    }
}

pub(super) fn text_or<'de, T: TextOr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Either<T>(PhantomData<T>);
    impl<'de, T: TextOr> Visitor<'de> for Either<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            T::from_text(text).map_err(E::custom)
        }

        /// For serde_yaml; the reader of the configuration file passes only strings.
        fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::from_keys(MapAccessDeserializer::new(map))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
            T::from_list(list)
        }
    }
    deserializer.deserialize_any(Either(PhantomData))
}
