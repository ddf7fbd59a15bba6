"""Put an observation and something beside it into one Dict."""

from typing import Any

from gymnasium import spaces

# Names of entries: the observation of an environment that has no entries, the number of a task, the actions that are allowed
OBS, TASK, ACTION_MASK = "obs", "task", "action_mask"


class ExtraEntry:
    """
    One more entry of observations, which become Dicts if they are none.

    :param space: observation space of the environment; one that is no Dict becomes the entry ``"obs"``
    :param key: name of the entry
    :param entry: space of the entry
    :raises ValueError: if observations have an entry of that name already
    """

    def __init__(self, space: spaces.Space[Any], key: str, entry: spaces.Space[Any]):
        self.key, self._is_dict = key, isinstance(space, spaces.Dict)
        entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {OBS: space}
        if key in entries:
            raise ValueError(f"observations must not have an entry {key!r} of their own, got {space}")
        self.space = spaces.Dict({**entries, key: entry})

    def add(self, obs: Any, value: Any) -> dict[str, Any]:
        """
        Return an observation with the entry.

        :param obs: of the environment
        :param value: of the entry
        """
        return {**(obs if self._is_dict else {OBS: obs}), self.key: value}
