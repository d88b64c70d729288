"""Times as people write them on a command line. Pure but for the zone of the machine."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

_AGO = re.compile(r"-(\d{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def microseconds(text: str, now: datetime) -> int:
    """`-10m`, `14:03` (the last time that it was that late), `2026-11-23T14:03` → microseconds since the epoch.

    Without a zone it is that of this machine; `now` has one. Raises `ValueError` for what is no time, or one to
    come.
    """
    moment = _moment(text.strip(), now)
    if moment > now:
        raise ValueError(f"{text[:60]!r} lies in the future")
    return (moment - datetime.fromtimestamp(0, tz=now.tzinfo)) // timedelta(microseconds=1)


def _moment(text: str, now: datetime) -> datetime:
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if ":" in text and "-" not in text[:5] and "T" not in text and " " not in text:
            return _last(time.fromisoformat(text.zfill(5) if len(text) == 4 else text), now)
        moment = datetime.fromisoformat(text)
        # A day alone could be its beginning or its end.
        if ":" not in text:
            raise ValueError
        return moment.astimezone() if moment.tzinfo is None else moment
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text[:60]!r} is no time: write 14:03, 2026-11-23T14:03, 2026-11-23T14:03Z or -10m (s, m, h, d)"
        ) from None


def _last(of_day: time, now: datetime) -> datetime:
    today = now if of_day.tzinfo is None else now.astimezone(of_day.tzinfo)
    moments = (datetime.combine(today.date() - timedelta(days=days), of_day) for days in (0, 1))
    aware = [moment.astimezone() if moment.tzinfo is None else moment for moment in moments]
    return aware[0] if aware[0] <= now else aware[1]
