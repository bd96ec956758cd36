//! The results the solver files under keys, and the refs they stand for.
//!
//! `scratch` is the ref of no layers, `ref:<id>` any other.
use crate::{
    Cache,
    error::Result,
    refs::{ImmutableRef, RefId},
};
use keys::ResultId;

impl Cache {
    /// The name to file a ref under; `None` for what is not kept (a context read in place).
    pub fn result_id(&self, of: &ImmutableRef) -> Option<ResultId> {
        match of.id() {
            None => Some(ResultId::new("scratch")),
            Some(id) if id.0 > 0 => Some(ResultId::new(format!("ref:{id}"))),
            Some(_) => None,
        }
    }

    /// The ref behind a name; `None` where it is gone or is no name of ours.
    ///
    /// # Errors
    /// The database's.
    pub fn result(&self, id: &ResultId) -> Result<Option<ImmutableRef>> {
        if id.as_str() == "scratch" {
            return Ok(Some(self.scratch()));
        }
        match id
            .as_str()
            .strip_prefix("ref:")
            .and_then(|number| number.parse().ok())
        {
            Some(number) => self.get(RefId(number)),
            None => Ok(None),
        }
    }
}
