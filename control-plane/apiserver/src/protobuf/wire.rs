//! The wire format: fields as number and payload (protobuf.dev, "Encoding").

use super::ProtobufError;

/// Reads fields in order.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// The value of a field as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Eight or four bytes, or a group: no field of Kubernetes is encoded so. The wire type.
    Other(u8),
}

impl<'a> Payload<'a> {
    pub(super) fn bytes(&self, field: &'static str) -> Result<&'a [u8], ProtobufError> {
        match *self {
            Payload::Bytes(bytes) => Ok(bytes),
            Payload::Varint(_) => Err(ProtobufError::WrongWireType { field, found: 0 }),
            Payload::Other(found) => Err(ProtobufError::WrongWireType { field, found }),
        }
    }

    pub(super) fn varint(&self, field: &'static str) -> Result<u64, ProtobufError> {
        match *self {
            Payload::Varint(value) => Ok(value),
            Payload::Bytes(_) => Err(ProtobufError::WrongWireType { field, found: 2 }),
            Payload::Other(found) => Err(ProtobufError::WrongWireType { field, found }),
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// The next field; `None` at the end.
    pub(super) fn field(&mut self) -> Result<Option<(u32, Payload<'a>)>, ProtobufError> {
        let Some((number, wire_type)) = self.tag()? else {
            return Ok(None);
        };
        let payload = match wire_type {
            0 => Payload::Varint(self.varint()?),
            2 => Payload::Bytes(self.delimited()?),
            3 => {
                self.skip_group()?;
                Payload::Other(3)
            }
            other => {
                self.skip_fixed(other)?;
                Payload::Other(other)
            }
        };
        Ok(Some((number, payload)))
    }

    /// The next number of a packed list; `None` at the end.
    pub(super) fn next_varint(&mut self) -> Result<Option<u64>, ProtobufError> {
        match self.rest.is_empty() {
            true => Ok(None),
            false => self.varint().map(Some),
        }
    }

    fn tag(&mut self) -> Result<Option<(u32, u8)>, ProtobufError> {
        let Some(tag) = self.next_varint()? else {
            return Ok(None);
        };
        // Go takes the low 32 bits as a signed number.
        let number = u32::try_from(tag >> 3 & u64::from(u32::MAX)).unwrap_or(0);
        let wire_type = u8::try_from(tag & 7).unwrap_or(0);
        if number.cast_signed() <= 0 {
            return Err(ProtobufError::IllegalTag(number.cast_signed()));
        }
        Ok(Some((number, wire_type)))
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(ProtobufError::Truncated)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Overflow)
    }

    fn delimited(&mut self) -> Result<&'a [u8], ProtobufError> {
        let length = self.varint()?;
        if length.cast_signed() < 0 {
            return Err(ProtobufError::NegativeLength);
        }
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(ProtobufError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Groups are old and nest: counted, not recursed into, so that hostile ones cost no stack.
    fn skip_group(&mut self) -> Result<(), ProtobufError> {
        let mut depth = 1_usize;
        while depth > 0 {
            let (_, wire_type) = self.tag()?.ok_or(ProtobufError::Truncated)?;
            match wire_type {
                0 => drop(self.varint()?),
                2 => drop(self.delimited()?),
                3 => depth += 1,
                4 => depth -= 1,
                other => self.skip_fixed(other)?,
            }
        }
        Ok(())
    }

    fn skip_fixed(&mut self, wire_type: u8) -> Result<(), ProtobufError> {
        match wire_type {
            1 => self.take(8).map(drop),
            5 => self.take(4).map(drop),
            4 => Err(ProtobufError::EndOfGroup),
            other => Err(ProtobufError::IllegalWireType(other)),
        }
    }
}
