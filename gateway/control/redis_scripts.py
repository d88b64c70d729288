"""What the shared store does in more than one command: each script happens whole, in one order for all.

Every change takes the keys `:state :deny :log :ops :signals` and the arguments op_id, actor, reason,
changes (JSON, and before it `chain.told_sha256` of all four, in hex), the life of the primary, the newest revision
that the writer knows of, then its own. It answers `{word, epoch, rev}` with the word `done`, `known` (this op_id was
here before), `same` (nothing to change), `conflict`, `late` (past the deadline that it came with), or `behind` (a
fail-over lost revisions that the writer knows of): then nothing was changed.

A life is that of one primary, by the sentinels' count of fail-overs; 0 without them. The first change of a life begins
an epoch, as many further as fail-overs were since: what the primaries between had taken, and lost, was answered under
revisions of their own.

Reads come before writes, and the log before the rest: a key of a wrong type or a full memory then refuses
the first write, and nothing is half done.
"""

from __future__ import annotations

import hashlib
from functools import cache

from gateway.control.redis_sha256 import SHA256

OPS_KEPT = 10_000
"""Op ids that are remembered, in the order of their revisions."""
LOG_KEPT = 10_000

# Numbers are handled as text wherever they may pass 2^53 or Lua's 14 digits: microseconds do.
_COMMON = f"""{SHA256}
local state, deny, log, ops, signals = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local op_id, actor, reason = ARGV[1], ARGV[2], ARGV[3]
local told, changes = string.sub(ARGV[4], 1, 64), string.sub(ARGV[4], 65)
local life, newest = ARGV[5], ARGV[6]
local held = redis.call('HMGET', state, 'epoch', 'rev', 'sha256', 'head', 'life', 'first')
local epoch, rev, sha = held[1], held[2], held[3]
local last_life = tonumber(held[5] or '')
local new_life = epoch and tonumber(life) > (last_life or 0)
redis.call('HLEN', deny)
local known = redis.call('ZSCORE', ops, op_id)
local time = redis.call('TIME')
local us = time[1] .. string.format('%06d', time[2])

-- Of the state: were it that of the last line, the next change would hide that lines were removed. Only where
-- the state was lost does the chain go on from the lines that are left.
local function head_before()
  if held[1] or held[4] then return held[4] or '' end
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  for i = 1, last and #last[2] or 0, 2 do
    if last[2][i] == 'head' then return last[2][i + 1] end
  end
  return ''
end

-- The same as `chain.head_with`.
local function head_with(prev, type)
  local fields = {{prev, told, type, epoch, rev, us, sha}}
  for i, field in ipairs(fields) do fields[i] = #field .. ':' .. field end
  return sha256(table.concat(fields))
end

local function commit(type)
  local prev = head_before()
  local head = head_with(prev, type)
  redis.call('XADD', log, 'MAXLEN', '~', {LOG_KEPT}, '*', 'type', type, 'epoch', epoch, 'rev', rev,
    'sha256', sha, 'op_id', op_id, 'actor', actor, 'reason', reason, 'us', us, 'changes', changes,
    'prev', prev, 'head', head)
  redis.call('HSET', state, 'head', head)
  redis.call('ZADD', ops, rev, op_id)
  redis.call('ZREMRANGEBYRANK', ops, 0, -{OPS_KEPT + 1})
end

local function plus(number, more)
  return string.format('%.0f', tonumber(number) + more)
end

-- Earlier releases wrote down no life.
local fail_overs = new_life and (last_life and tonumber(life) - last_life or 1) or 0

local function advance(type)
  local base = new_life and epoch .. '.' .. rev
  epoch, rev = plus(epoch, fail_overs), plus(rev, 1)
  commit(type)
  redis.call('HSET', state, 'epoch', epoch, 'rev', rev, 'op_id', op_id, 'actor', actor,
    'reason', reason, 'commit_us', us, 'life', life)
  if base then redis.call('HSET', state, 'base', base, 'first', rev) end
end

local function behind()
  local newest_epoch, newest_rev = string.match(newest, '^(%d+)%.(%d+)$')
  newest_epoch, newest_rev = tonumber(newest_epoch), tonumber(newest_rev)
  local ours = tonumber(epoch)
  return new_life and (ours < newest_epoch or ours == newest_epoch and tonumber(rev) < newest_rev)
end

local function last_signal()
  local last = redis.call('XREVRANGE', signals, '+', '-', 'COUNT', 1)
  return last[1] and last[1][1] or '0-0'
end
"""

_ANSWER_KNOWN = """
-- One that was here before this epoch began is part of its first revision.
if epoch and known then
  return {'known', epoch, string.format('%.0f', math.max(known, tonumber(held[6] or '1') or 1))}
end
"""

# In an empty store older op ids and signals mean nothing; denies that are left stay, because too many of them
# is the safe side.
PUT = (
    _COMMON
    + _ANSWER_KNOWN
    + """
local want_epoch, want_rev, doc, doc_sha = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
if not epoch and want_epoch == '0' and want_rev == '0' then
  local last = last_signal()
  epoch, rev, sha = '1', '0', doc_sha
  redis.call('DEL', ops)
  advance('put')
  redis.call('HSET', state, 'signals_id', last)
elseif epoch == want_epoch and rev == want_rev then
  sha = doc_sha
  advance('put')
else
  return {'conflict', epoch or '0', rev or '0'}
end
redis.call('HSET', state, 'doc', doc, 'sha256', sha)
return {'done', epoch, rev}
"""
)

# Own arguments: pairs of key and the tombstone's JSON, open at its end for what only the server knows.
DENY = (
    _COMMON
    + _ANSWER_KNOWN
    + """
if not epoch then return {'conflict', '0', '0'} end
if behind() then return {'behind', epoch, rev} end
local new = {}
for i = 7, #ARGV, 2 do
  if redis.call('HEXISTS', deny, ARGV[i]) == 0 then new[#new + 1] = i end
end
if #new == 0 then return {'same', epoch, rev} end
advance('deny')
for _, i in ipairs(new) do
  redis.call('HSET', deny, ARGV[i], ARGV[i + 1] .. ',"rev":' .. rev .. ',"us":' .. us .. '}')
end
return {'done', epoch, rev}
"""
)

# Own arguments: why ('settle', or 'carry over': only as the first change of a life), expected epoch and rev, the
# highest epoch known, base, document and its sha256, the last signal that was done with here, then pairs of key and
# tombstone. Who carries over has the denies whole. Otherwise those that nobody gave are those of an emptied or damaged
# store; they get the new epoch's revision like the others, or whoever lifts one would be overruled by its old, higher
# one. An unreadable one denies all the same: its key says what.
RESTORE = (
    _COMMON
    + _ANSWER_KNOWN
    + """
-- As redis_values has it: what is damaged is 0.0 here and there.
local function counts(text)
  return text and string.match(text, '^%d+$') and tonumber(text) <= 9007199254740991
end
local whole = counts(epoch) and counts(rev)
local now_epoch, now_rev = whole and epoch or '0', whole and rev or '0'
if now_epoch ~= ARGV[8] or now_rev ~= ARGV[9] then return {'conflict', now_epoch, now_rev} end
local carries = ARGV[7] == 'carry over'
if carries and not new_life then return {'same', now_epoch, now_rev} end
local base, doc, doc_sha, seen = ARGV[11], ARGV[12], ARGV[13], ARGV[14]
local cursor = redis.call('HGET', state, 'signals_id') or (seen ~= '' and seen) or last_signal()
local denies, stored = {}, carries and {} or redis.call('HGETALL', deny)
for i = 1, #stored, 2 do
  local tomb, found = string.gsub(stored[i + 1], '"rev":%d+', '"rev":1', 1)
  if found == 0 or not pcall(cjson.decode, tomb) then
    tomb = '{"version":"?","reason":"unreadable in the store","rev":1}'
  end
  if string.find(stored[i], '|', 1, true) then denies[stored[i]] = tomb end
end
for i = 15, #ARGV, 2 do denies[ARGV[i]] = ARGV[i + 1] end
epoch, rev, sha = plus(math.max(now_epoch + fail_overs, math.max(now_epoch, ARGV[10]) + 1), 0), '0', doc_sha
new_life, fail_overs = false, 0
redis.call('DEL', ops)
advance('restore')
redis.call('HSET', state, 'doc', doc, 'sha256', doc_sha, 'base', base, 'first', rev, 'signals_id', cursor)
redis.call('DEL', deny)
for key, tomb in pairs(denies) do redis.call('HSET', deny, key, tomb) end
return {'done', epoch, rev}
"""
)

# Own arguments: until when, in microseconds by this server's clock, then the keys. Whoever asked a server that is
# frozen was told that it did not answer, and may have rolled back since: thawed, it must not lift anything.
UNDENY = (
    _COMMON
    + _ANSWER_KNOWN
    + """
if not epoch then return {'conflict', '0', '0'} end
if tonumber(us) > tonumber(ARGV[7]) then return {'late', epoch, rev} end
if behind() then return {'behind', epoch, rev} end
local there = {}
for i = 8, #ARGV do
  if redis.call('HEXISTS', deny, ARGV[i]) == 1 then there[#there + 1] = ARGV[i] end
end
if #there == 0 then return {'same', epoch, rev} end
advance('undeny')
for _, key in ipairs(there) do redis.call('HDEL', deny, key) end
return {'done', epoch, rev}
"""
)

REJECT = (
    _COMMON
    + _ANSWER_KNOWN
    + """
if not epoch then return {'conflict', '0', '0'} end
commit('reject')
return {'done', epoch, rev}
"""
)

# Keys: state, deny. Arguments: the digest and the length of the document that the reader holds. One moment, one
# round trip, and the document, which may be 4 MB, only where it is another one, or was edited under its digest.
READ = """
local head = redis.call('HMGET', KEYS[1], 'epoch', 'rev', 'sha256', 'commit_us', 'base', 'head')
local denies = redis.call('HGETALL', KEYS[2])
local doc = false
local same = head[3] == ARGV[1] and redis.call('HSTRLEN', KEYS[1], 'doc') == tonumber(ARGV[2])
if not same then doc = redis.call('HGET', KEYS[1], 'doc') end
return {head, denies, doc}
"""

# Keys: state, log. The head of the chain, and the last line of the history at that moment.
LEDGER = """
return {redis.call('HMGET', KEYS[1], 'epoch', 'head'), redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)}
"""

# Keys: the acknowledgement, the members. Arguments: the replica, seconds until it fades, the time at which its
# content was first applied ('0': now), then the fields. Answers that time.
REPORT = """
local time = redis.call('TIME')
local us = time[1] .. string.format('%06d', time[2])
local applied_us = ARGV[3]
if applied_us == '0' then applied_us = us end
redis.call('HSET', KEYS[1], 'applied_us', applied_us, unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], us, ARGV[1])
-- What has not reported for an hour is not only away.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', tonumber(us) - 3600000000))
return applied_us
"""

# Whoever may append to the signals' stream may give its entries any id, also the highest that there is. The entry
# that was done with last stays in the stream. Where it is gone, the stream was deleted, or trimmed by somebody
# else: what is left counts from its beginning, because what was obeyed is known by its op id.
_CURSOR = """
local HIGHEST = '18446744073709551615-18446744073709551615'
local function last(stream)
  local entry = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  return entry and entry[1] or '0-0'
end
local function within(cursor, stream)
  -- Of what is no id, an error.
  local entry = redis.pcall('XRANGE', stream, cursor, cursor, 'COUNT', 1)[1]
  return entry and entry[1] or '0-0'
end
-- To ask for what comes after the highest id is an error.
local function after(id, stream)
  if id == last(stream) then return nil end
  return redis.call('XRANGE', stream, '(' .. id, '+', 'COUNT', 1)[1]
end
"""

# Keys: the state, the signals. Argument: a stream id, as text. Answers the cursor, '' where there is no state.
# It moves on only to the entry that comes next: a reader that still follows a stream that was deleted since is done
# with one, and has not seen those before it. What is done with is trimmed, all but the last: it holds the cursor.
SEEN = (
    _CURSOR
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return '' end
local cursor = within(redis.call('HGET', KEYS[1], 'signals_id') or '0-0', KEYS[2])
local entry = after(cursor, KEYS[2])
if not entry or entry[1] ~= ARGV[1] then return cursor end
-- First: a full memory refuses the other write, and this one makes room.
redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[1])
redis.call('HSET', KEYS[1], 'signals_id', ARGV[1])
return ARGV[1]
"""
)

# Keys: the state, the log, the signals. Arguments: how many signals, of each how many names and values, how many
# bytes of one, and the signal that the reader was done with last, or ''. Answers the end of the log, the signal
# that is done with, and those after it, cut to size here: whoever may append to the stream may append 200,000
# fields, and to read those takes a client two seconds, so it would never come past them.
LOOK = (
    _CURSOR
    + """
-- A store that was emptied has lost its cursor, and without one what came before is about nothing.
local done = redis.call('HGET', KEYS[1], 'signals_id') or ARGV[4]
done = done == '' and last(KEYS[3]) or within(done, KEYS[3])
-- No entry is possible after the highest id, which a stream remembers when it is empty, too: a new one, then.
local ends = last(KEYS[3])
if ends == '0-0' or (ends == HIGHEST and done == HIGHEST) then
  if redis.call('EXISTS', KEYS[3]) == 1 then redis.pcall('DEL', KEYS[3]) end
  done = '0-0'
end
local at, found = done, {}
while #found < tonumber(ARGV[1]) do
  -- One at a time: a hundred large ones at once would be in memory together.
  local entry = after(at, KEYS[3])
  if not entry then break end
  local cut = {}
  for i = 1, math.min(#entry[2], tonumber(ARGV[2])) do
    cut[i] = string.sub(entry[2][i], 1, tonumber(ARGV[3]))
  end
  at = entry[1]
  found[#found + 1] = {at, cut}
end
return {last(KEYS[2]), done, found}
"""
)


@cache
def sha1(script: str) -> str:
    """The name under which a server knows the script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
