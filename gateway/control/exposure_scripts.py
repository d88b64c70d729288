"""The counts of exposure in Redis: each call one script, so that no two replicas are given the same request.

Keys: `:state`, `:exposure:<route>|<digest>` (HASH life, number, given, renewed_us, and e:<replica> with the
errors of each replica) and `:exposed:<route>|<digest>` (SET of hashed keys). Counts of versions that nobody
serves any more fade.
"""

from __future__ import annotations

from gateway.control.exposure_store import SHARE, SHARE_AHEAD

FADES_S = 90 * 86_400

_COMMON = f"""
local function now()
  local time = redis.call('TIME')
  return time[1] .. string.format('%06d', time[2])
end
local function keep()
  if redis.call('TTL', KEYS[2]) < {FADES_S // 2} then
    redis.call('EXPIRE', KEYS[2], {FADES_S})
    redis.call('EXPIRE', KEYS[3], {FADES_S})
  end
end
"""

# Arguments: replica, seen life, number, requests and keys, limit, wanted, ahead (0/1), errors, limit of keys,
# a new life, keys. Answers {word, life, number, given, errors, keys, renewed_us, now_us, given now, admitted…}.
ASK = (
    _COMMON
    + f"""
local function number(i) return tonumber(ARGV[i]) end
local us = now()
if redis.call('EXISTS', KEYS[1]) == 0 then return {{'empty'}} end
local held = redis.call('HMGET', KEYS[2], 'life', 'number', 'given', 'renewed_us')
local life, count, given, renewed = held[1], tonumber(held[2]), tonumber(held[3]), held[4]
local known = redis.call('SCARD', KEYS[3])
if life then
  if count < number(3) or (count == number(3)
      and (life ~= ARGV[2] or given < number(4) or known < number(5))) then
    return {{'lost', '', 0, 0, 0, 0, '0', us, 0}}
  end
elseif number(3) > 0 then
  return {{'lost', '', 0, 0, 0, 0, '0', us, 0}}
else
  life, count, given, renewed = ARGV[11], 1, 0, us
  redis.call('HSET', KEYS[2], 'life', life, 'number', 1, 'given', 0, 'renewed_us', us)
end
if number(9) > 0 and (number(3) == 0 or number(3) == count) then
  local own = 'e:' .. ARGV[1]
  -- Two calls of a replica may overtake one another.
  if number(9) > tonumber(redis.call('HGET', KEYS[2], own) or '0') then
    redis.call('HSET', KEYS[2], own, ARGV[9])
  end
end
local left, now_given = number(6) - given, 0
if number(7) > 0 and left > 0 then
  local part = math.floor(left / {SHARE_AHEAD})
  if ARGV[8] == '0' then part = math.max(1, math.floor(left / {SHARE})) end
  now_given = math.min(number(7), part)
  given = given + now_given
  if now_given > 0 then redis.call('HINCRBY', KEYS[2], 'given', now_given) end
end
local admitted = {{}}
for i = 12, #ARGV do
  if redis.call('SISMEMBER', KEYS[3], ARGV[i]) == 1 then
    admitted[#admitted + 1] = ARGV[i]
  elseif known < number(10) then
    known = known + redis.call('SADD', KEYS[3], ARGV[i])
    admitted[#admitted + 1] = ARGV[i]
  end
end
keep()
local errors, all = 0, redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 2) == 'e:' then errors = errors + tonumber(all[i + 1]) end
end
return {{'found', life, count, given, errors, known, renewed, us, now_given, unpack(admitted)}}
"""
)

RENEW = (
    _COMMON
    + """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('HSET', KEYS[2], 'renewed_us', now())
keep()
return 1
"""
)

# Arguments: a number that the new one must be above, a life for a count that is not there.
RESTART = (
    _COMMON
    + """
local held = redis.call('HMGET', KEYS[2], 'life', 'number')
if not held[1] and ARGV[1] == '0' then return 0 end
local number = math.max(tonumber(held[2] or '0'), tonumber(ARGV[1])) + 1
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HSET', KEYS[2], 'life', held[1] or ARGV[2], 'number', number, 'given', 0, 'renewed_us', now())
keep()
return 1
"""
)
